//! The latest lines of the daemon's log, in memory, for a bug report.
//!
//! A writer for the log beside stderr. Bounded in lines and bytes; a line that is longer than [`LONGEST`] is cut. Takes a lock for each line of the
//! log, which no read or write of a volume writes.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io;

/// Most lines kept.
const LINES: usize = 2000;
/// Most bytes kept.
const BYTES: usize = 512 << 10;
/// Most bytes kept of one line.
const LONGEST: usize = 4 << 10;

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<String>,
    bytes: usize,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct RecentLog(Mutex<Kept>);

impl RecentLog {
    /// The lines, oldest first.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.0.lock().lines.iter().cloned().collect()
    }

    fn add(&self, line: &[u8]) {
        let line = plain(&line[..line.len().min(LONGEST)]);
        let mut kept = self.0.lock();
        kept.bytes += line.len();
        kept.lines.push_back(line);
        while kept.lines.len() > LINES || kept.bytes > BYTES {
            let Some(oldest) = kept.lines.pop_front() else { break };
            kept.bytes -= oldest.len();
        }
    }
}

/// Without a terminal's colours.
fn plain(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut plain = String::with_capacity(text.len());
    let mut parts = text.split("\x1b[");
    plain.push_str(parts.next().unwrap_or_default());
    for part in parts {
        plain.push_str(part.split_once('m').map_or("", |(_, rest)| rest));
    }
    plain
}

impl io::Write for &RecentLog {
    /// The log writes each of its lines at once.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            self.add(line);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn the_latest_lines_are_kept_within_bounds() {
        let log = RecentLog::default();
        for number in 0..LINES + 5 {
            (&log).write_all(format!("line {number}\n").as_bytes()).unwrap();
        }
        let lines = log.lines();
        assert_eq!(lines.len(), LINES);
        assert_eq!((lines[0].as_str(), lines[LINES - 1].as_str()), ("line 5", "line 2004"));
        for _ in 0..BYTES / LONGEST + 10 {
            (&log).write_all(&vec![b'x'; 2 * LONGEST]).unwrap();
        }
        let kept: usize = log.lines().iter().map(String::len).sum();
        assert_eq!(kept, BYTES);
        assert!(log.lines().iter().all(|line| line.len() == LONGEST));
    }

    #[test]
    fn colours_are_left_out() {
        let log = RecentLog::default();
        (&log)
            .write_all(b"\x1b[2m10:00\x1b[0m \x1b[32mINFO\x1b[0m up\n")
            .unwrap();
        assert_eq!(log.lines(), ["10:00 INFO up"]);
    }
}
