//! Numbers about what runs here, in the text format that Prometheus reads.
//!
//! - [`Histogram`]: how long something took; a few atomic additions an observation, no lock, no allocation.
//! - [`Metric`]: every metric that a node exports, with its name, type and help; the manual's table is compared with it.
//! - [`Exposition`]: the text of one scrape.
//!
//! Whoever counts keeps its own counters beside what it counts; `node::telemetry` reads all of them when asked. Knows nothing of anything else.

mod histogram;
mod names;
mod text;

pub use histogram::{BOUNDS, Histogram, Observed};
pub use names::{Kind, Metric};
pub use text::{CONTENT_TYPE, Exposition, Value};
