//! How long things take: not tests of a limit, but measures. Started by `tests/times`, which makes a table of them.
//!
//! A measure is a line `NAME VALUE UNIT` for each repetition, in the file that `TIMES_OUT` names. A pause is the longest time between two
//! acknowledged fsyncs of a writer that appends lines without a break.

use crate::checker::apart;
use crate::harness::{Cluster, Writer, bash, eventually, own_descriptors};
use crate::losses::plane;
use crate::netns::{Net, computeonly};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;
/// How long writes are measured without a sync.
const SAMPLE: Duration = Duration::from_secs(5);

fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: start it by tests/times"))
}

fn number(name: &str) -> usize {
    setting(name).parse().unwrap()
}

fn record(name: &str, value: f64, unit: &str) {
    let line = format!("{name} {value:.3} {unit}\n");
    print!("{line}");
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(setting("TIMES_OUT"))
        .unwrap();
    file.write_all(line.as_bytes()).unwrap();
}

/// Runs `fault`, waits until the writer goes on and `after` holds, and returns the longest pause.
fn pause(
    net: &mut Net,
    writer: &Writer,
    fault: impl Fn(&mut Net, usize),
    node: usize,
    after: impl Fn(&Net) -> bool,
) -> Duration {
    writer.goes_on(50);
    writer.longest_pause();
    fault(net, node);
    eventually("the fault was dealt with", || after(net).then_some(()));
    writer.goes_on(50);
    writer.longest_pause()
}

#[test]
#[ignore = "a measure: started by tests/times"]
fn pauses() {
    // Three copies; the mount is on a node without one.
    let mut net = Net::start(4, |index| if index == 3 { computeonly() } else { vec![] });
    net.create("data", 2);
    net.wait_for_health("data");
    let mount = net.mount(3, "default/data");
    let writer = Writer::start(&mount.join("lines"));
    let kill = |net: &mut Net, node: usize| net.nodes[node].kill();
    let cut = |net: &mut Net, node: usize| net.cut(node);
    for _ in 0..number("TIMES_REPETITIONS") {
        for name in ["pause_master_killed", "pause_master_cut_off", "pause_replica_killed"] {
            let holders = net.holders("data");
            let (node, master) = if name == "pause_replica_killed" {
                (holders[1], false)
            } else {
                (holders[0], true)
            };
            let who = net.nodes[node].name.clone();
            let led = plane(&net, 3).is_some_and(|(_, leader, _)| leader == who);
            let gone = move |net: &Net| {
                let at = net.inspect("data");
                let moved = at["master"]["nodeName"] != who.as_str() && at["master"]["health"] == "healthy";
                if master {
                    moved
                } else {
                    !net.replicas("data", "healthy").contains(&who)
                }
            };
            let took = if name == "pause_master_cut_off" {
                pause(&mut net, &writer, cut, node, gone)
            } else {
                pause(&mut net, &writer, kill, node, gone)
            };
            // Without a leader nothing can be decided: those are two failures in one.
            let name = if led { format!("{name}_led") } else { name.to_owned() };
            record(&name, took.as_secs_f64() * 1000.0, "ms");
            if net.nodes[node].runs() {
                net.heal(node);
            } else {
                net.nodes[node].start();
            }
            net.wait_for_health("data");
        }
    }
    let (result, _) = writer.stop();
    result.unwrap();
    net.unmount(&mount);
}

/// Appends whole MiB with an fsync each, round a file of fixed size, and counts them.
struct Stream {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<io::Result<()>>,
    started: Instant,
}

impl Stream {
    fn start(path: PathBuf) -> Self {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), written.clone());
        let thread = std::thread::spawn(move || {
            own_descriptors()?;
            let file = File::options().create(true).truncate(false).write(true).open(path)?;
            let data = vec![0x5a; MIB];
            while !stopped.load(Ordering::Relaxed) {
                let at = count.load(Ordering::Relaxed) % 64 * MIB as u64;
                file.write_all_at(&data, at)?;
                file.sync_all()?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Self {
            stop,
            written,
            thread,
            started: Instant::now(),
        }
    }

    fn stop_after(self, time: Duration) -> f64 {
        std::thread::sleep(time);
        self.stop()
    }

    /// MiB a second until now.
    fn stop(self) -> f64 {
        let rate = self.written.load(Ordering::Relaxed) as f64 / self.started.elapsed().as_secs_f64();
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap().unwrap();
        rate
    }
}

#[track_caller]
fn all_in_sync(cluster: &Cluster) {
    let start = Instant::now();
    // Longer than the harness's deadline: a full sync in a debug build may take minutes.
    while start.elapsed() < Duration::from_secs(600) {
        if cluster.inspect("data")["health"] == "healthy" {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("not in sync within ten minutes");
}

fn want_replicas(cluster: &Cluster, replicas: &str) {
    let label = format!("storageos.com/replicas={replicas}");
    cluster.cli(&["volume", "update", "--label-add", &label, "data"]).ok();
}

#[track_caller]
fn drop_third_copy(cluster: &Cluster) {
    want_replicas(cluster, "1");
    cluster.wait_for_copies_on_disks(2);
    all_in_sync(cluster);
}

/// The time until a third copy is in sync that is made from nothing.
#[track_caller]
fn make_third_copy(cluster: &Cluster) -> Duration {
    let started = Instant::now();
    want_replicas(cluster, "2");
    eventually("a new copy is on its way", || {
        (cluster.inspect("data")["replicas"].as_array()?.len() == 2).then_some(())
    });
    all_in_sync(cluster);
    started.elapsed()
}

/// Changes every hundredth 4 KiB block.
fn change_one_percent(mount: &Path, size: usize, round: usize) {
    let path = mount.join("big");
    let change = move || -> io::Result<()> {
        let file = File::options().write(true).open(path)?;
        let mut random = blake3::Hasher::new().update(&round.to_le_bytes()).finalize_xof();
        for block in (0..size * MIB / 4096).step_by(100) {
            let mut data = [0; 4096];
            random.fill(&mut data);
            file.write_all_at(&data, block as u64 * 4096)?;
        }
        file.sync_all()
    };
    apart("blocks are changed", change).unwrap();
}

#[test]
#[ignore = "a measure: started by tests/times"]
fn syncs() {
    let size = number("TIMES_MIB");
    let mut cluster = Cluster::start(3);
    cluster.create_sized("data", "4GiB", &["storageos.com/replicas=2"]);
    let mount = cluster.mount(0, "default/data");
    bash(
        &mount,
        &format!("dd if=/dev/urandom of=big bs=1M count={size} conv=fsync status=none"),
    )
    .ok();
    all_in_sync(&cluster);
    for round in 0..number("TIMES_REPETITIONS") {
        drop_third_copy(&cluster);
        record("sync_full", make_third_copy(&cluster).as_secs_f64(), "s");
        let name = cluster.replicas("data", "healthy")[0].clone();
        let replica = cluster.index(&name);
        cluster.nodes[replica].kill();
        change_one_percent(&mount, size, round);
        let started = Instant::now();
        cluster.nodes[replica].start();
        all_in_sync(&cluster);
        record("sync_after_1_percent_changed", started.elapsed().as_secs_f64(), "s");
        // During a sync some of what is written goes to two copies, some to the third as well, whatever the sync itself costs.
        let stream = mount.join("stream");
        drop_third_copy(&cluster);
        let before = Stream::start(stream.clone()).stop_after(SAMPLE);
        let during = Stream::start(stream.clone());
        let lasted = make_third_copy(&cluster);
        let during = during.stop();
        let after = Stream::start(stream).stop_after(SAMPLE);
        record("sync_full_while_written", lasted.as_secs_f64(), "s");
        record("writes_before_a_sync_two_copies", before, "MiB/s");
        record("writes_during_a_sync", during, "MiB/s");
        record("writes_after_a_sync_three_copies", after, "MiB/s");
        record("writes_during_a_sync_of_those_before", 100.0 * during / before, "%");
        record("writes_during_a_sync_of_those_after", 100.0 * during / after, "%");
    }
    cluster.unmount(&mount);
}
