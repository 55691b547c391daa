//! Faults of processes, links and disks under load: no acknowledged write is lost, nothing stale is served, nothing fails that the
//! failure mode does not ask for.
//!
//! First the faults that matter most, one test each. Then rounds: each a cluster and one to three faults, chosen by a seed. `./test` plays
//! a few; `tests/faults --rounds N --seed S` many.

use crate::checker::{Load, Written, apart};
use crate::harness::{Cluster, DEADLINE, Writer, bash, check_lines, eventually};
use crate::losses::plane;
use crate::netns::{Net, computeonly};
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longer than any test: a mount whose writes are suspended waits, and returns no error.
const PATIENT: &str = "storageos.com/io.timeout=60m";

fn create(cluster: &Cluster, replicas: u8, mode: &str, timeout: &str) {
    let replicas = format!("storageos.com/replicas={replicas}");
    let mode = format!("storageos.com/failure.mode={mode}");
    create_with(cluster, &[&replicas, &mode, timeout]);
}

fn create_with(cluster: &Cluster, labels: &[&str]) {
    cluster.create_sized("data", "512MiB", labels);
    eventually("the new volume is healthy", || {
        (cluster.inspect("data")["health"] == "healthy").then_some(())
    });
}

/// Waits until another node than this one is the master.
#[track_caller]
fn another_master_than(net: &Net, old: usize) -> usize {
    eventually("another node is the master", || {
        let name = net.inspect("data")["master"]["nodeName"].as_str()?.to_owned();
        let found = net.index(&name);
        (found != old).then_some(found)
    })
}

/// For each epoch at most one node said that it serves as the master.
#[track_caller]
fn one_master_for_each_epoch(net: &Net) {
    let mut masters: BTreeMap<u64, usize> = BTreeMap::new();
    for node in 0..net.nodes.len() {
        let log = net.nodes[node].whole_log();
        let lines = log
            .lines()
            .filter(|l| l.contains("master active") || l.contains("serving as master volume"));
        for line in lines {
            let digits = line.split("epoch=").nth(1).and_then(|rest| rest.split(' ').next());
            let Some(epoch) = digits.and_then(|d| d.parse().ok()) else {
                panic!("no epoch in: {line}");
            };
            let first = *masters.entry(epoch).or_insert(node);
            assert_eq!(first, node, "two masters at epoch {epoch}: n{} and: {line}", first + 1);
        }
    }
    assert!(!masters.is_empty(), "no master was ever active");
}

/// Everything is well again: the copies are in sync and identical, every acknowledged write is there for a new mount on this node.
#[track_caller]
fn all_is_well(net: &mut Net, mount: &Path, written: Written, copies: usize, node: usize) {
    net.wait_for_health("data");
    net.unmount(mount);
    net.verify_identical("data", copies);
    let fresh = net.mount(node, "default/data");
    written.check(&fresh);
    net.unmount(&fresh);
    net.cli(&["volume", "scrub", "data"]).ok();
    let deep = net.cli(&["volume", "verify", "--deep", "data"]);
    assert_eq!(deep.code, 0, "{}{}", deep.out, deep.err);
    one_master_for_each_epoch(net);
}

#[test]
fn a_master_that_is_cut_off_silently_is_replaced_and_a_mount_elsewhere_goes_on() {
    let mut net = Net::start(5, |_| vec![]);
    create(&net, 2, "soft", PATIENT);
    let elsewhere = net.without_copy("data")[0];
    let mount = net.mount(elsewhere, "default/data");
    let load = Load::start(&mount, 1);
    let master = net.holders("data")[0];
    net.cut(master);
    load.goes_on();
    assert_ne!(another_master_than(&net, master), master);
    net.heal(master);
    load.goes_on();
    let written = load.ends_well();
    all_is_well(&mut net, &mount, written, 3, master);
}

#[test]
fn a_stopped_master_that_wakes_after_another_took_over_writes_through_it() {
    let mut net = Net::start(5, |_| vec![]);
    create(&net, 2, "soft", PATIENT);
    let old = net.holders("data")[0];
    let mount = net.mount(old, "default/data");
    let load = Load::start(&mount, 2);
    net.stop_daemon(old);
    let new = another_master_than(&net, old);
    net.continue_daemon(old);
    load.goes_on();
    eventually("the old master has noticed", || {
        net.nodes[old]
            .whole_log()
            .contains("not serving as master any more")
            .then_some(())
    });
    let written = load.ends_well();
    all_is_well(&mut net, &mount, written, 3, new);
}

/// Reads a file again and again until that fails: when each read began, and what it saw.
fn reads_until_error(file: &Path) -> Vec<(Instant, String)> {
    let mut seen = Vec::new();
    loop {
        let began = Instant::now();
        let mut text = String::new();
        // Past the kernel's cache, so that the daemon is asked.
        let read = std::fs::File::options()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(file)
            .and_then(|mut f| f.read_to_string(&mut text));
        if read.is_err() {
            return seen;
        }
        seen.push((began, text));
    }
}

/// A volume whose master, with the mount, was stopped, and which is mounted elsewhere now, where `shared` was changed.
struct TakenOver {
    net: Net,
    old: usize,
    old_mount: PathBuf,
    writer: Writer,
    acknowledged: u64,
    fresh: PathBuf,
}

fn taken_over() -> TakenOver {
    let mut net = Net::start(5, |_| vec![]);
    create(&net, 2, "alwayson", "storageos.com/io.timeout=5s");
    let old = net.holders("data")[0];
    let old_mount = net.mount(old, "default/data");
    bash(&old_mount, "echo old > shared; sync shared").ok();
    let writer = Writer::start(&old_mount.join("lines"));
    writer.goes_on(10);
    net.stop_daemon(old);
    let acknowledged = writer.count();
    let new = another_master_than(&net, old);
    let asked = Instant::now();
    net.cli(&["volume", "unmount", "--force", "data"]).ok();
    let waited = asked.elapsed();
    assert!(waited < DEADLINE / 3, "waited {waited:?} for a daemon that hangs");
    let fresh = net.mount(new, "default/data");
    bash(&fresh, "echo new > shared; sync shared; echo more > more; sync more").ok();
    TakenOver {
        net,
        old,
        old_mount,
        writer,
        acknowledged,
        fresh,
    }
}

#[test]
fn a_stopped_master_that_wakes_after_another_mount_took_over_cannot_write() {
    let TakenOver {
        mut net,
        old,
        writer,
        acknowledged,
        fresh,
        ..
    } = taken_over();
    net.continue_daemon(old);
    eventually("the old mount's writer fails", || writer.has_ended().then_some(()));
    let (result, after) = writer.stop();
    assert!(result.is_err());
    // The line that was on its way may have been counted after the signal.
    assert!(after <= acknowledged + 1, "{after} acknowledged, {acknowledged} before");
    assert_eq!(bash(&fresh, "cat shared more").ok(), "new\nmore\n");
    check_lines(&fresh.join("lines"), acknowledged);
    net.wait_for_health("data");
    net.unmount(&fresh);
    net.verify_identical("data", 3);
    one_master_for_each_epoch(&net);
}

#[test]
fn a_stopped_master_that_wakes_after_another_mount_took_over_serves_no_old_data() {
    let TakenOver {
        mut net,
        old,
        old_mount,
        ..
    } = taken_over();
    // Reads that begin from now on come after the change.
    let file = old_mount.join("shared");
    let reader = std::thread::spawn(move || apart("the old mount fails", move || reads_until_error(&file)));
    net.continue_daemon(old);
    let seen = reader.join().unwrap();
    let stale: Vec<_> = seen.iter().filter(|(_, text)| text == "old\n").collect();
    let lasted = stale.last().map(|(at, _)| at.duration_since(stale[0].0));
    assert!(stale.is_empty(), "{} reads of old data, within {lasted:?}", stale.len());
}

#[test]
fn a_replica_that_hears_nothing_or_is_not_heard_is_left_out_and_comes_back() {
    let mut net = Net::start(5, |_| vec![]);
    create(&net, 2, "soft", PATIENT);
    let holders = net.holders("data");
    let mount = net.mount(holders[0], "default/data");
    let load = Load::start(&mount, 3);
    let replica = holders[1];
    for fault in [Net::deafen, Net::mute] {
        fault(&mut net, replica);
        load.goes_on();
        let left = net.replicas("data", "healthy");
        assert!(!left.contains(&net.nodes[replica].name), "{left:?}");
        net.heal(replica);
        net.wait_for_health("data");
        load.goes_on();
    }
    let written = load.ends_well();
    all_is_well(&mut net, &mount, written, 3, replica);
}

#[test]
fn a_slow_replica_is_left_out_at_its_deadline_and_an_event_says_so() {
    let mut net = Net::start(5, |_| vec![]);
    create(&net, 2, "soft", PATIENT);
    let holders = net.holders("data");
    let mount = net.mount(holders[0], "default/data");
    let slow = holders[1];
    net.slow(slow, 64);
    let started = Instant::now();
    bash(
        &mount,
        "dd if=/dev/urandom of=big bs=1M count=16 conv=fsync status=none",
    )
    .ok();
    let took = started.elapsed();
    let name = net.nodes[slow].name.clone();
    let text = net
        .cli(&["events", "--volume", "data", "--node", &name, "--format", "json"])
        .ok();
    let events: Value = serde_json::from_str(&text).unwrap();
    let lost = events.as_array().unwrap().iter().find(|e| e["kind"] == "replicaLost");
    let message = lost.expect("an event")["message"].as_str().unwrap();
    assert!(message.contains("no answer within 5s"), "{message}, after {took:?}");
    net.heal(slow);
    let load = Load::start(&mount, 4);
    let written = load.ends_well();
    all_is_well(&mut net, &mount, written, 3, slow);
}

#[test]
fn two_data_nodes_and_a_witness_survive_either_data_node() {
    let mut net = Net::start(3, |index| if index == 2 { computeonly() } else { vec![] });
    create(&net, 1, "alwayson", PATIENT);
    let mount = net.mount(2, "default/data");
    let load = Load::start(&mount, 5);
    for node in [0, 1] {
        net.nodes[node].kill();
        load.goes_on();
        net.nodes[node].start();
        net.wait_for_health("data");
        net.cut(node);
        load.goes_on();
        net.heal(node);
        net.wait_for_health("data");
    }
    let written = load.ends_well();
    all_is_well(&mut net, &mount, written, 2, 2);
}

#[test]
fn writes_work_again_when_the_disk_under_the_last_copy_has_space_again() {
    let mut net = Net::start(3, |_| vec![]);
    create(&net, 0, "soft", PATIENT);
    let master = net.holders("data")[0];
    let mount = net.mount(master, "default/data");
    let copied = "dd if=/dev/urandom of=big bs=1M count=8 conv=fsync status=none";
    bash(&mount, copied).ok();
    net.fill(master);
    let refused = bash(
        &mount,
        "dd if=/dev/urandom of=more bs=1M count=8 conv=fsync status=none",
    );
    assert!(refused.err.contains("No space"), "{}", refused.err);
    net.free(master);
    eventually("writes work again", || {
        (bash(&mount, &copied.replace("big", "again")).code == 0).then_some(())
    });
    bash(&mount, "sha256sum big again").ok();
    net.unmount(&mount);
    net.verify_identical("data", 1);
}

#[test]
fn a_node_whose_disk_was_full_takes_part_in_the_control_plane_again() {
    let mut net = Net::start(3, |_| vec![]);
    let make = |net: &Net, node: usize, name: &str| net.nodes[node].cli(&["namespace", "create", name]);
    net.fill(1);
    // As many as its file still has room for, and one more.
    let mut changes = 0..;
    eventually("its replica has stopped", || {
        make(&net, 0, &format!("a{}", changes.next()?)).ok();
        net.nodes[1]
            .whole_log()
            .contains("replica of the control plane stopped")
            .then_some(())
    });
    net.free(1);
    eventually("changes work through it", || {
        (make(&net, 1, "b").code == 0).then_some(())
    });
    // Without the third node it is needed for a majority.
    net.nodes[2].kill();
    make(&net, 0, "c").ok();
    let listed = net.nodes[1].cli(&["namespace", "ls", "-q"]).ok();
    assert!(
        ["a0", "b", "c"]
            .iter()
            .all(|name| listed.lines().any(|line| line == *name)),
        "{listed}"
    );
}

/// What is done to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Kill,
    Restart,
    Stop,
    Cut,
    Deaf,
    Mute,
    Slow(u32),
    FullDisk,
    FlippedBits,
}

/// A fault of a round.
#[derive(Clone, Copy)]
struct Planned {
    fault: Fault,
    node: usize,
    role: &'static str,
    at: Duration,
    lasts: Duration,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, until) = (self.at.as_secs_f32(), (self.at + self.lasts).as_secs_f32());
        write!(
            f,
            "{:?} of n{} ({}) {from:.1}-{until:.1} s",
            self.fault,
            self.node + 1,
            self.role
        )
    }
}

/// What faults are chosen from.
struct Scene {
    mount: usize,
    holders: Vec<usize>,
    voters: Vec<usize>,
    nodes: usize,
}

impl Scene {
    fn role(&self, node: usize) -> &'static str {
        match self.holders.iter().position(|h| *h == node) {
            Some(0) => "master",
            Some(_) => "replica",
            None => "bystander",
        }
    }

    /// Whether a round may have this fault beside the others: a majority of the voters stays, the mount's daemon is not ended, and beside a
    /// copy with flipped bits or a full disk there is one that nothing happens to.
    fn allows(&self, fault: Fault, node: usize, others: &[Planned]) -> bool {
        let struck = |n: &usize| others.iter().any(|p| p.node == *n) || *n == node;
        let role = self.role(node);
        let fits = match fault {
            Fault::Kill | Fault::Restart => node != self.mount,
            Fault::FullDisk => role == "replica",
            Fault::FlippedBits => role != "bystander",
            _ => true,
        };
        // Else the bad copy may be the last in sync, and errors would be right.
        let spoils = |fault: &Fault| matches!(fault, Fault::FlippedBits | Fault::FullDisk);
        let spoilt = spoils(&fault) || others.iter().any(|p| spoils(&p.fault));
        fits && !others.iter().any(|p| p.node == node)
            && self.voters.iter().filter(|v| struck(v)).count() <= 1
            && (!spoilt || !self.holders.iter().all(struck))
    }

    fn choose(&self, random: &mut SmallRng) -> Vec<Planned> {
        let mut planned: Vec<Planned> = Vec::new();
        let wanted = random.random_range(1..=3);
        // After some there may be no further one that is allowed.
        for _ in 0..1000 {
            if planned.len() == wanted {
                break;
            }
            let fault = match random.random_range(0..9) {
                0 => Fault::Kill,
                1 => Fault::Restart,
                2 => Fault::Stop,
                3 => Fault::Cut,
                4 => Fault::Deaf,
                5 => Fault::Mute,
                6 => Fault::Slow(random.random_range(100..4000)),
                7 => Fault::FullDisk,
                _ => Fault::FlippedBits,
            };
            let role = *["master", "replica", "bystander"].choose(random).unwrap();
            let nodes: Vec<usize> = (0..self.nodes).filter(|n| self.role(n.to_owned()) == role).collect();
            let node = *nodes.choose(random).unwrap();
            let at = Duration::from_millis(random.random_range(0..4000));
            let lasts = Duration::from_millis(random.random_range(1000..15000));
            if self.allows(fault, node, &planned) {
                planned.push(Planned {
                    fault,
                    node,
                    role,
                    at,
                    lasts,
                });
            }
        }
        assert!(!planned.is_empty(), "one fault alone is always allowed");
        planned
    }
}

fn begin(net: &mut Net, fault: Fault, node: usize) {
    match fault {
        Fault::Kill => net.nodes[node].kill(),
        Fault::Restart => {
            net.nodes[node].stop();
        }
        Fault::Stop => net.stop_daemon(node),
        Fault::Cut => net.cut(node),
        Fault::Deaf => net.deafen(node),
        Fault::Mute => net.mute(node),
        Fault::Slow(kbit) => net.slow(node, kbit),
        Fault::FullDisk => net.fill(node),
        Fault::FlippedBits => {
            net.flip(node);
        }
    }
}

fn end(net: &mut Net, fault: Fault, node: usize) {
    match fault {
        Fault::Kill | Fault::Restart => net.nodes[node].spawn(),
        Fault::Stop => net.continue_daemon(node),
        Fault::Cut | Fault::Deaf | Fault::Mute | Fault::Slow(_) => net.heal(node),
        Fault::FullDisk => net.free(node),
        Fault::FlippedBits => {}
    }
}

/// Plays the faults at their times.
fn play(net: &mut Net, planned: &[Planned]) {
    let mut steps: Vec<(Duration, bool, &Planned)> = Vec::new();
    for p in planned {
        steps.push((p.at, true, p));
        steps.push((p.at + p.lasts, false, p));
    }
    steps.sort_by_key(|(at, ..)| *at);
    let started = Instant::now();
    for (at, begins, p) in steps {
        // A fault's random moment, not a wait for anything.
        std::thread::sleep(at.saturating_sub(started.elapsed()));
        if begins {
            begin(net, p.fault, p.node);
        } else {
            end(net, p.fault, p.node);
        }
    }
}

/// What a round's line says.
#[derive(Default)]
struct Report {
    scene: String,
    pause: Duration,
}

/// The copies are on nodes that the seed chose, so that a repeated round has the same faults.
fn create_on_chosen_nodes(net: &Net, mode: &str, random: &mut SmallRng) {
    let mut names: Vec<&str> = net.nodes.iter().map(|n| n.name.as_str()).collect();
    names.shuffle(random);
    let spare = &names[3..];
    for name in spare {
        net.cli(&["node", "cordon", name]).ok();
    }
    let mode = format!("storageos.com/failure.mode={mode}");
    let master = format!("storageos.com/hint.master={}", names[0]);
    create_with(net, &["storageos.com/replicas=2", &mode, &master, PATIENT]);
    for name in spare {
        net.cli(&["node", "uncordon", name]).ok();
    }
}

fn mount_somewhere(net: &mut Net, random: &mut SmallRng) -> (usize, PathBuf) {
    let mut choices = net.without_copy("data");
    if random.random_bool(0.5) {
        choices = (0..net.nodes.len()).filter(|i| !choices.contains(i)).collect();
    }
    let node = *choices.choose(random).unwrap();
    (node, net.mount(node, "default/data"))
}

fn round(seed: u64, report: &mut Report) {
    let mut random = SmallRng::seed_from_u64(seed);
    let mode = *["alwayson", "soft", "hard"].choose(&mut random).unwrap();
    let mut net = Net::start(5, |_| vec![]);
    create_on_chosen_nodes(&net, mode, &mut random);
    let (node, mount) = mount_somewhere(&mut net, &mut random);
    let (voters, ..) = plane(&net, 0).unwrap();
    let scene = Scene {
        mount: node,
        holders: net.holders("data"),
        voters: voters.iter().map(|name| net.index(name)).collect(),
        nodes: net.nodes.len(),
    };
    let planned = scene.choose(&mut random);
    let faults: Vec<String> = planned.iter().map(ToString::to_string).collect();
    report.scene = format!(
        "{mode}, mount on n{} ({}): {}",
        node + 1,
        scene.role(node),
        faults.join("; ")
    );
    let load = Load::start(&mount, seed);
    play(&mut net, &planned);
    load.goes_on();
    report.pause = load.longest_pause();
    net.wait_for_health("data");
    load.goes_on();
    let written = load.ends_well();
    let next = random.random_range(0..net.nodes.len());
    all_is_well(&mut net, &mount, written, 3, next);
}

/// Plays a round and prints its line; whether it went well.
fn told(seed: u64) -> bool {
    let mut report = Report::default();
    let went_well = catch_unwind(AssertUnwindSafe(|| round(seed, &mut report))).is_ok();
    let result = if went_well { "good" } else { "FAILED" };
    println!(
        "seed {seed}: {result}, longest pause {:.1} s; {}",
        report.pause.as_secs_f32(),
        report.scene
    );
    if !went_well {
        println!("  to repeat it: tests/faults --rounds 1 --seed {seed}");
    }
    went_well
}

#[test]
fn seeded_rounds_of_faults_lose_nothing() {
    for seed in [1, 2] {
        assert!(told(seed));
    }
}

#[test]
#[ignore = "long: started by tests/faults"]
fn many_rounds() {
    let number = |name: &str| -> u64 { std::env::var(name).unwrap().parse().unwrap() };
    let (rounds, seed) = (number("FAULTS_ROUNDS"), number("FAULTS_SEED"));
    let failed: Vec<u64> = (seed..seed + rounds).filter(|seed| !told(*seed)).collect();
    println!("{rounds} rounds, {} failed: {failed:?}", failed.len());
    assert!(failed.is_empty());
}
