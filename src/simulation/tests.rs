//! Runs by seed, and runs that are broken on purpose.

use super::cluster::Cluster;
use super::network::{chance, network};
use super::workload::{IO_TIMEOUT, Judge, Mount, spy};
use crate::exec::{Host, World, host, thread};
use crate::volume::Labels;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How a run is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sabotage {
    None,
    /// The control store acknowledges changes of configurations before they are done: a master goes on, and acknowledges
    /// writes, before it is on record that a copy is not in sync any more.
    EarlyAcknowledgement,
    /// Copies' promises are made up on the way: a master that was replaced reads on.
    FalsePromises,
    /// Disks acknowledge flushes that they do not do.
    IdleFlushes,
}

fn labels(pairs: &[(&str, String)]) -> Labels {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), value.clone()))
        .collect()
}

/// One run; what happened, for whoever looks at a failure.
fn run(seed: u64, sabotage: Sabotage) -> (String, u64) {
    World::run(seed, |world| {
        let show = std::env::var_os("SIMULATION_SEED").is_some();
        let shown = Shown(show);
        let nodes = 3 + chance(3) as Host;
        let replicas = 1 + chance(u64::from(nodes) - 1).min(2);
        let mode = ["soft", "hard", "alwayson"][chance(3) as usize];
        let labels = labels(&[
            ("storageos.com/replicas", replicas.to_string()),
            ("storageos.com/failure.mode", mode.to_owned()),
            ("storageos.com/io.timeout", format!("{}s", IO_TIMEOUT.as_secs())),
        ]);
        let cluster = Cluster::new(world, nodes, labels);
        let broken = |by| sabotage == by;
        cluster
            .plane
            .lies
            .store(broken(Sabotage::EarlyAcknowledgement), Ordering::SeqCst);
        cluster
            .network
            .promises
            .store(broken(Sabotage::FalsePromises), Ordering::SeqCst);
        for disk in cluster.disks.values() {
            disk.flushes_nothing
                .store(broken(Sabotage::IdleFlushes), Ordering::SeqCst);
        }
        let judge = Judge::new(&cluster);
        let mut said = vec![format!("{nodes} nodes, {replicas} replicas, {mode}")];
        let mut copies = replicas as usize + 1;
        let mut mount = mount(&cluster, &judge, None, &mut said);
        wait(&cluster, copies, "at first");
        for host in cluster.hosts() {
            let pause = if broken(Sabotage::FalsePromises) { 10 } else { 100 };
            spy(&judge, host, Duration::from_millis(pause));
        }
        for _ in 0..2 + chance(3) {
            faults(&cluster, &judge, &mut copies, &mut said);
            if chance(3) == 0 {
                mount = self::mount(&cluster, &judge, Some(&mount), &mut said);
            }
        }
        heal(&cluster);
        wait(&cluster, copies, &said.join("; "));
        mount.works(&judge);
        mount.close(&judge);
        // Whatever was given up may be under way for so long.
        thread::sleep(IO_TIMEOUT + Duration::from_secs(1));
        wait(&cluster, copies, &said.join("; "));
        judge.settle(copies);
        said.push(format!(
            "{} acknowledged, {} errors {:?}, {:?}",
            judge.acknowledged(),
            judge.errors().len(),
            judge.errors().iter().collect::<std::collections::BTreeSet<_>>(),
            world.now()
        ));
        drop(shown);
        said.join("; ")
    })
}

/// Shows the log of a run when it ends, if it is asked for.
struct Shown(bool);

impl Drop for Shown {
    fn drop(&mut self) {
        if let (true, Some(network)) = (self.0, network()) {
            eprintln!("{}", network.log().join("\n"));
        }
    }
}

/// Mounts the volume on a node that can. An earlier mount is closed first, unless its node is dead or away: then its claim has to be
/// released by the controller.
fn mount(cluster: &Arc<Cluster>, judge: &Arc<Judge>, old: Option<&Mount>, said: &mut Vec<String>) -> Mount {
    if cluster.plane.down.load(Ordering::SeqCst) {
        said.push(format!("{:?} healed to mount", cluster.world.now()));
        heal(cluster);
    }
    let away = old.is_some_and(|old| cluster.process(old.host).is_none() || cluster.is_away(old.host));
    if let Some(old) = old.filter(|_| !away) {
        old.close(judge);
    }
    loop {
        for _ in 0..2 {
            let mut hosts = cluster.hosts();
            hosts.retain(|host| cluster.process(*host).is_some() && !cluster.is_away(*host));
            let Some(host) = hosts.get(chance(hosts.len() as u64) as usize).copied() else {
                break;
            };
            if let Some(mount) = Mount::open(judge, host) {
                said.push(format!("{:?} mounted on {host}", cluster.world.now()));
                tracing::info!("{}", said[said.len() - 1]);
                mount.write(judge);
                return mount;
            }
        }
        said.push(format!("{:?} healed to mount", cluster.world.now()));
        heal(cluster);
        if let Some(old) = old {
            old.close(judge);
        }
    }
}

fn wait(cluster: &Arc<Cluster>, copies: usize, said: &str) {
    let end = cluster.world.now() + Duration::from_secs(240);
    while !cluster.settled(copies) {
        assert!(
            cluster.world.now() < end,
            "does not settle: {:?}; {said}",
            cluster.record()
        );
        thread::sleep(Duration::from_millis(100));
    }
}

/// One or two things go wrong for a while.
fn faults(cluster: &Arc<Cluster>, judge: &Arc<Judge>, copies: &mut usize, said: &mut Vec<String>) {
    let hosts = cluster.hosts();
    for _ in 0..1 + chance(2) {
        let host = hosts[chance(hosts.len() as u64) as usize];
        let what = match chance(13) {
            0 | 1 if cluster.process(host).is_some() => {
                cluster.kill(host, false);
                "killed"
            }
            2 if cluster.process(host).is_some() => {
                judge.lost_power(host);
                cluster.kill(host, true);
                "without power"
            }
            3 => {
                cluster.stop(host);
                "stopped"
            }
            4 => {
                cluster.cut_off(host, true, true);
                "cut off"
            }
            5 => {
                let out = chance(2) == 0;
                cluster.cut_off(host, out, !out);
                "cut off one way"
            }
            6 => {
                let other = hosts[chance(hosts.len() as u64) as usize];
                cluster.network.cut(host, other);
                cluster.network.cut(other, host);
                "cut off from another"
            }
            7 if *copies > 1 && cluster.settled(*copies) => harm_a_disk(cluster, judge, host),
            8 => {
                cluster.plane.down.store(true, Ordering::SeqCst);
                "and the control plane is down"
            }
            // With all nodes well: the copy that stays may be on one that has just lost its disk.
            9 if hosts
                .iter()
                .all(|host| cluster.process(*host).is_some() && !cluster.is_away(*host)) =>
            {
                *copies = cluster.ask_for_replicas(chance(4).min(hosts.len() as u64 - 1)) + 1;
                "there, and the number of replicas was changed"
            }
            10 => {
                cluster.drain(host);
                "drained"
            }
            11 => {
                cluster.network.slow(host, Duration::from_millis(300));
                "slow"
            }
            _ => {
                cluster.plane.unreliable.store(true, Ordering::SeqCst);
                "and the control plane answers badly"
            }
        };
        said.push(format!("{:?} {host} {what}", cluster.world.now()));
        tracing::info!("{}", said[said.len() - 1]);
        thread::sleep(Duration::from_millis(chance(3000)));
    }
    thread::sleep(Duration::from_millis(chance(9000)));
    if chance(3) > 0 {
        said.push(format!("{:?} healed", cluster.world.now()));
        heal(cluster);
    }
}

/// What happens to a disk while the other copies are well.
fn harm_a_disk(cluster: &Arc<Cluster>, judge: &Arc<Judge>, host: Host) -> &'static str {
    judge.harmed();
    match chance(3) {
        0 => {
            cluster.disks[&host].set_full(true);
            "has a full disk"
        }
        1 => {
            cluster.disks[&host].flip(cluster.volume);
            "has a flipped bit"
        }
        _ => {
            judge.lost_power(host);
            cluster.kill(host, true);
            cluster.disks[&host].lose_all();
            "has lost its disk"
        }
    }
}

fn heal(cluster: &Arc<Cluster>) {
    cluster.network.heal();
    cluster.undrain();
    cluster.plane.down.store(false, Ordering::SeqCst);
    for disk in cluster.disks.values() {
        disk.set_full(false);
    }
    cluster.plane.unreliable.store(false, Ordering::SeqCst);
    for host in cluster.hosts() {
        cluster.resume(host);
        if cluster.process(host).is_none() {
            cluster.start(host);
        }
    }
}

/// Gives every world its log. Always, since what is only done to be logged takes turns too.
fn keep_logs() {
    struct ToWorld;
    impl std::io::Write for ToWorld {
        fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
            if let Some(network) = network() {
                let line = String::from_utf8_lossy(line);
                network.note(format!(
                    "{:?} host {} {}",
                    network.world().now(),
                    host(),
                    line.trim_end()
                ));
            }
            Ok(line.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .without_time()
        .with_ansi(false)
        .with_writer(|| ToWorld);
    // Another test of this process may have done so.
    let _ = subscriber.try_init();
}

/// Runs a seed; `None` and its log on the standard error if an invariant broke.
fn outcome(seed: u64, sabotage: Sabotage) -> Result<(String, u64), String> {
    keep_logs();
    let broken = |payload: Box<dyn std::any::Any + Send>| {
        payload
            .downcast_ref::<String>()
            .cloned()
            .unwrap_or_else(|| "a panic".to_owned())
    };
    std::panic::catch_unwind(|| run(seed, sabotage)).map_err(broken)
}

fn seeds(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        if let Err(why) = outcome(seed, Sabotage::None) {
            panic!(
                "seed {seed}: {why}\nAgain, with its log: SIMULATION_SEED={seed} cargo test --lib simulation::tests::one_seed -- --nocapture"
            );
        }
    }
}

#[test]
fn no_promise_is_broken_by_seeds_0_to_249() {
    seeds(0..250);
}

#[test]
fn no_promise_is_broken_by_seeds_250_to_499() {
    seeds(250..500);
}

#[test]
fn no_promise_is_broken_by_seeds_500_to_749() {
    seeds(500..750);
}

#[test]
fn no_promise_is_broken_by_seeds_750_to_999() {
    seeds(750..1000);
}

#[test]
fn a_seed_repeats_exactly() {
    for seed in [3, 14] {
        assert_eq!(
            outcome(seed, Sabotage::None).unwrap(),
            outcome(seed, Sabotage::None).unwrap()
        );
    }
}

/// What breaks, within so many seeds, when something is broken on purpose.
fn noticed(sabotage: Sabotage, within: u64) -> String {
    (0..within)
        .find_map(|seed| outcome(seed, sabotage).err())
        .unwrap_or_else(|| panic!("{sabotage:?} is not noticed"))
}

#[test]
fn an_acknowledgement_before_the_swap_is_noticed() {
    noticed(Sabotage::EarlyAcknowledgement, 100);
}

#[test]
fn a_read_without_promises_is_noticed() {
    let why = noticed(Sabotage::FalsePromises, 400);
    assert!(why.contains(" read "), "{why}");
}

#[test]
fn a_flush_that_does_nothing_is_noticed() {
    noticed(Sabotage::IdleFlushes, 400);
}

/// For a closer look: `SIMULATION_SEED=N` runs one seed and shows its log, `SIMULATION_SEEDS=N` runs so many.
#[test]
fn one_seed() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIMULATION_SEEDS").unwrap_or(10),
    };
    for seed in seeds {
        let started = std::time::Instant::now();
        match outcome(seed, Sabotage::None) {
            Ok((said, trace)) => println!("{seed} {trace:x} {:?}: {said}", started.elapsed()),
            Err(why) => println!("{seed} FAILED {why}"),
        }
    }
}
