//! SQLite through power losses: it works on a real mount whose device records everything; of the images that a loss may leave, each must hold a
//! database that SQLite finds whole, with every transaction that it had acknowledged. SQLite takes it from the file system that what it synced
//! is there, that an unlinked or truncated journal stays so once that is synced, and that no file shows another's bytes.

use super::{LONG, serve_device};
use crate::block::BlockDevice;
use crate::fs::tests::recorder::{ALL, Blocks, Recorder, images};
use crate::fs::{FileSystem, Options, ROOT, device_blocks};
use crate::fuse::Unmount;
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::Arc;

const CAPACITY: u64 = 8 << 20;
const TRANSACTIONS: usize = 40;

/// Moments on the device: before each transaction, and when SQLite said that it was done.
struct Done {
    begun: Vec<usize>,
    acknowledged: Vec<usize>,
}

fn sqlite(directory: &Path) -> Command {
    let mut command = Command::new("sqlite3");
    command.args(["-batch", "-bail", "d.db"]).current_dir(directory);
    command
}

fn next_line(lines: &mut BufReader<ChildStdout>) -> String {
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    line.trim().to_owned()
}

/// Transaction 0 makes the tables. Each has a row, takes an old one away, and counts itself.
fn transact(directory: &Path, device: &Recorder, mode: &str, synchronous: &str) -> Done {
    let mut child = sqlite(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sqlite3 is installed");
    let (mut to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut lines = BufReader::new(from);
    writeln!(
        to,
        "pragma synchronous={synchronous}; pragma journal_mode={mode}; pragma wal_autocheckpoint=30;"
    )
    .unwrap();
    assert_eq!(next_line(&mut lines), mode);
    assert_eq!(next_line(&mut lines), "30");
    let (mut begun, mut acknowledged) = (Vec::new(), Vec::new());
    for n in 0..=TRANSACTIONS {
        begun.push(device.now());
        let work = match n {
            0 => "create table t(n integer primary key, v blob); create table last(n); insert into last values(0);"
                .into(),
            _ => format!(
                "insert into t values({n}, randomblob(9000)); update last set n={n}; delete from t where n={n}-5;"
            ),
        };
        writeln!(to, "begin; {work} commit; select 'done {n}';").unwrap();
        assert_eq!(next_line(&mut lines), format!("done {n}"));
        acknowledged.push(device.now());
    }
    drop(to);
    assert!(child.wait().unwrap().success());
    Done { begun, acknowledged }
}

/// Opens an image and copies the database's files out of it; whether there are any.
fn copy_out(image: Blocks, to: &Path) -> bool {
    let device: Arc<dyn BlockDevice> = Recorder::new(device_blocks(CAPACITY), image, false);
    if !FileSystem::is_formatted(&device).unwrap() {
        return false;
    }
    let fs = FileSystem::open(device, Options::default()).unwrap();
    for name in ["d.db", "d.db-journal", "d.db-wal"] {
        let Ok(found) = fs.lookup(ROOT, name.as_bytes()) else {
            continue;
        };
        let content = fs.read(found.ino, 0, u32::try_from(found.size).unwrap()).unwrap();
        fs::write(to.join(name), &content).unwrap();
    }
    to.join("d.db").exists()
}

/// What the database counts, and the problems that SQLite finds.
fn look(directory: &Path) -> Result<usize, String> {
    let query = "pragma integrity_check; select last.n from last where last.n = (select max(0, max(t.n)) from t) or last.n = 0;";
    let said = sqlite(directory).arg(query).output().unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr),
    );
    let mut lines = out.lines();
    match (lines.next(), lines.next().and_then(|n| n.parse().ok())) {
        (Some("ok"), Some(count)) => Ok(count),
        _ => Err(format!("{out}{err}")),
    }
}

fn survives(mode: &str, synchronous: &str) {
    let device = Recorder::new(device_blocks(CAPACITY), Blocks::new(), false);
    let plain: Arc<dyn BlockDevice> = device.clone();
    FileSystem::format(&plain, CAPACITY).unwrap();
    let (handle, directory) = serve_device(plain);
    let done = transact(directory.path(), &device, mode, synchronous);
    let events = device.events(0);
    handle.unmount(Unmount::Clean).unwrap();
    handle.wait(LONG, LONG).expect("the mount ends").unwrap();

    let mut random = StdRng::seed_from_u64(1);
    let (mut tried, mut in_flight) = (0, 0);
    images(&Blocks::new(), &events, &ALL, &mut random, |moment, kept, image, _| {
        let at_least = done.acknowledged.iter().rposition(|at| *at <= moment);
        let at_most = done.begun.iter().rposition(|at| *at <= moment);
        let copied = tempfile::tempdir().unwrap();
        let exists = copy_out(image, copied.path());
        let Some(at_least) = at_least else { return };
        assert!(exists, "{mode}, event {moment}, kept: {kept:?}: the database is gone");
        let found = look(copied.path()).unwrap_or_else(|e| panic!("{mode}, event {moment}, kept: {kept:?}: {e}"));
        assert!(
            found >= at_least && Some(found) <= at_most,
            "{mode}, event {moment}, kept: {kept:?}: transaction {found} is the last; {at_least} was acknowledged, {at_most:?} begun"
        );
        tried += 1;
        in_flight += usize::from(found > at_least);
    });
    println!("{mode}: {tried} images, {in_flight} with a transaction that was not acknowledged yet");
    assert!(tried >= 300, "only {tried} images");
}

#[test]
fn sqlite_with_a_journal_that_is_deleted_keeps_what_it_acknowledged_through_power_losses() {
    // With FULL, SQLite does not sync the directory after the journal's end, and promises less.
    survives("delete", "extra");
}

#[test]
fn sqlite_with_a_journal_that_stays_keeps_what_it_acknowledged_through_power_losses() {
    survives("truncate", "full");
    survives("persist", "full");
}

#[test]
fn sqlite_with_a_write_ahead_log_keeps_what_it_acknowledged_through_power_losses() {
    survives("wal", "full");
}
