//! Whether this node can do its work now, for load balancers and orchestrators.
//!
//! Ready means: a member of its cluster, the control plane answers, and every volume whose master is to be here is served. That other nodes or
//! copies are gone does not make a node unready: restarting it would not help. Reads only.

use super::control::name;
use super::daemon::Shared;
use crate::api::types::Readiness;

impl Shared {
    /// See the module's text.
    pub(super) async fn readiness(&self) -> Readiness {
        let joined = match self.joined() {
            Ok(joined) => joined,
            Err(error) => return Readiness::not(vec![error.message]),
        };
        let mut reasons = Vec::new();
        if let Err(why) = joined.control_answers().await {
            reasons.push(why);
        }
        let view = joined.control.view();
        let problems = joined.server.problems.lock().clone();
        let here = view
            .volumes
            .values()
            .filter(|volume| volume.configuration.master == Some(self.node));
        for volume in here {
            let active = joined.server.host.master(volume.id);
            if active.is_none_or(|master| master.fenced().is_some()) {
                let why = problems.get(&volume.id).map_or("it is starting", String::as_str);
                reasons.push(format!(
                    "the master of volume {} is not active here: {why}",
                    name(volume)
                ));
            }
        }
        Readiness::not(reasons)
    }
}
