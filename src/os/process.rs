//! What `/proc/PID/stat` says (proc_pid_stat(5)).

/// The fields of a process's line after its name, which may hold anything.
pub(crate) struct Stat<'a>(Vec<&'a str>);

impl<'a> Stat<'a> {
    pub(crate) fn of(line: &'a str) -> Option<Self> {
        let (_, rest) = line.rsplit_once(')')?;
        Some(Self(rest.split_whitespace().collect()))
    }

    /// The field with this number, from 3 on as the manual counts.
    pub(crate) fn field(&self, number: usize) -> Option<u64> {
        self.0.get(number.checked_sub(3)?)?.parse().ok()
    }

    /// When it started, in ticks since the machine did.
    pub(crate) fn started(&self) -> Option<u64> {
        self.field(22)
    }
}
