//! A peer's processes: started as one group, measured as one, ended as one.
//!
//! CPU time is user plus system time of every process of the group, as /proc has it (10 ms ticks),
//! with that of children which it has already buried.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process_group};

/// A process group; killed when dropped.
pub(crate) struct Group {
    leader: Child,
    pid: Pid,
}

/// The fields of /proc/PID/stat that count here.
struct Stat {
    pid: i32,
    group: i32,
    ticks: u64,
}

// === impl Group ===

impl Group {
    /// Starts `program`, its output in the file `log`.
    ///
    /// `setpriv` ends it when this process goes away without a word (an interrupt at the
    /// terminal); it replaces itself by the program, so that it is not measured.
    pub(crate) fn spawn(program: &Path, arguments: &[&str], log: &Path) -> Result<Self> {
        let out = File::options().create(true).append(true).open(log)?;
        let leader = Command::new("setpriv")
            .args(["--pdeathsig", "TERM"])
            .arg(program)
            .args(arguments)
            // Nobody here keeps an access log; ours is one line a request by default.
            .env("PORTCULLIS_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let pid = Pid::from_child(&leader);
        Ok(Group { leader, pid })
    }

    /// Whether the first process still runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        matches!(self.leader.try_wait(), Ok(None))
    }

    /// CPU seconds used so far.
    #[expect(clippy::cast_precision_loss, reason = "ticks are far below 2^52")]
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let ticks: u64 = self.members().map(|stat| stat.ticks).sum();
        ticks as f64 / rustix::param::clock_ticks_per_second() as f64
    }

    /// The sum of the highest resident sizes so far, in MiB. Shared pages count for each process.
    #[expect(clippy::cast_precision_loss, reason = "kibibytes are far below 2^52")]
    pub(crate) fn peak_memory(&self) -> f64 {
        let kibibytes: u64 = self
            .members()
            .filter_map(|stat| fs::read_to_string(format!("/proc/{}/status", stat.pid)).ok())
            .filter_map(|status| {
                let value = status
                    .lines()
                    .find_map(|line| line.strip_prefix("VmHWM:"))?;
                value.split_whitespace().next()?.parse::<u64>().ok()
            })
            .sum();
        kibibytes as f64 / 1024.0
    }

    /// Ends every process at once, without a chance to tidy up.
    pub(crate) fn kill(&mut self) {
        // Fails only when nobody is left.
        let _ = kill_process_group(self.pid, Signal::KILL);
        let _ = self.leader.wait();
    }

    fn members(&self) -> impl Iterator<Item = Stat> {
        let group = self.pid.as_raw_nonzero().get();
        fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter_map(Stat::read)
            .filter(move |stat| stat.group == group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

// === impl Stat ===

impl Stat {
    /// `None` for a process that has just ended.
    fn read(pid: i32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command name may contain anything, but its closing parenthesis is the last one.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |field: usize| fields.get(field)?.parse::<u64>().ok();
        Some(Stat {
            pid,
            group: fields.get(2)?.parse().ok()?,
            ticks: (11..=14).filter_map(number).sum(),
        })
    }
}
