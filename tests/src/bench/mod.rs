//! Measuring side by side: every alternative in every round, in turn, so that a busy moment of the machine falls on all of them;
//! medians, and ratios to the first.

use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, Table, presets};
use nix::sys::resource::{UsageWho, getrusage};
use nix::time::{ClockId, clock_gettime};

pub mod bgp;
pub mod cni;
pub mod crowd;
pub mod fib;
pub mod floor;
pub mod kube;
pub mod policy;

/// Routes where nobody asks for another number.
pub const USUAL_ROUTES: u32 = 100_000;

/// One measurement.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// From beginning to end.
    pub wall: Duration,
    /// User and system time of whoever did the work, where it could be told.
    pub cpu: Option<Duration>,
    /// Resident memory of whoever did the work afterwards, in kilobytes, where that means something.
    pub resident_kb: Option<u64>,
    /// The longest time that a session waited for a KEEPALIVE of which one was due every second.
    pub silence: Option<Duration>,
    /// How late a BFD packet came at most, of which one was due every 100 ms.
    pub late: Option<Duration>,
}

/// A line of a table: an alternative and its measurements.
#[derive(Clone, Debug)]
pub struct Line {
    name: String,
    samples: Vec<Sample>,
}

/// A table of alternatives for one job.
#[derive(Clone, Debug)]
pub struct Comparison {
    title: String,
    /// How many operations a sample is.
    operations: u32,
    lines: Vec<Line>,
}

impl Comparison {
    /// A comparison; a sample stands for this many operations.
    pub fn new(title: &str, operations: u32) -> Self {
        Self { title: title.to_owned(), operations, lines: Vec::new() }
    }

    /// Adds a measurement to a line, which is made at its first one.
    pub fn add(&mut self, name: &str, sample: Sample) {
        match self.lines.iter_mut().find(|line| line.name == name) {
            Some(line) => line.samples.push(sample),
            None => self.lines.push(Line { name: name.to_owned(), samples: vec![sample] }),
        }
    }

    /// Prints it: medians, their ratio to the first line, and the range of the wall times.
    pub fn print(&self) {
        let rounds = self.lines.first().map_or(0, |line| line.samples.len());
        println!("\n== {} (median of {rounds} samples, taken in turn)", self.title);
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let many = self.operations > 1;
        // Microseconds each for what is done by the thousand.
        let (unit, scale) = if self.operations >= 1000 { ("us", 1e6) } else { ("ms", 1e3) };
        let each = if many { " each" } else { "" };
        let silence = self.lines.iter().any(|line| line.samples.iter().any(|s| s.silence.is_some()));
        let mut header: Vec<String> =
            ["", &format!("{unit}{each}"), "per second", "ratio"].map(str::to_owned).into();
        header.extend(
            [&format!("CPU {unit}"), "ratio", "RSS MB", &format!("min-max {unit}")].map(str::to_owned),
        );
        if silence {
            header.push("keepalive gap ms".to_owned());
        }
        let late = self.lines.iter().any(|line| line.samples.iter().any(|s| s.late.is_some()));
        if late {
            header.push("BFD late ms".to_owned());
        }
        table.set_header(header);
        let reference = self.lines.first();
        for line in &self.lines {
            let each = |d: Duration| d.as_secs_f64() * scale / f64::from(self.operations);
            let wall = median(line.samples.iter().map(|s| each(s.wall)));
            let cpu = median(line.samples.iter().filter_map(|s| s.cpu.map(each)));
            let resident =
                median(line.samples.iter().filter_map(|s| s.resident_kb.map(|kb| kb as f64 / 1024.0)));
            let walls = || line.samples.iter().map(|s| each(s.wall));
            let base = |of: fn(&Sample) -> Option<Duration>| {
                median(reference.into_iter().flat_map(|line| line.samples.iter().filter_map(of)).map(each))
            };
            let ratio = |value: Option<f64>, base: Option<f64>| match (value, base) {
                (Some(value), Some(base)) if base > 0.0 => format!("{:.2}", value / base),
                _ => "-".to_owned(),
            };
            let number = |value: Option<f64>| value.map_or("-".to_owned(), three_digits);
            let mut row = vec![
                line.name.clone(),
                number(wall),
                wall.filter(|w| *w > 0.0 && many).map_or("-".to_owned(), |w| format!("{:.0}", scale / w)),
                ratio(wall, base(|s| Some(s.wall))),
                number(cpu),
                ratio(cpu, base(|s| s.cpu)),
                number(resident),
                format!(
                    "{}-{}",
                    three_digits(walls().fold(f64::INFINITY, f64::min)),
                    three_digits(walls().fold(0.0, f64::max))
                ),
            ];
            if silence {
                let longest = line.samples.iter().filter_map(|s| s.silence).max();
                row.push(longest.map_or("-".to_owned(), |gap| format!("{:.0}", gap.as_secs_f64() * 1e3)));
            }
            if late {
                let latest = line.samples.iter().filter_map(|s| s.late).max();
                row.push(latest.map_or("-".to_owned(), |late| format!("{:.1}", late.as_secs_f64() * 1e3)));
            }
            table.add_row(row);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for line in table.to_string().lines() {
            println!("  {}", line.trim_end());
        }
    }
}

fn three_digits(value: f64) -> String {
    match value {
        _ if value >= 100.0 => format!("{value:.0}"),
        _ if value >= 10.0 => format!("{value:.1}"),
        _ if value >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// The middle one, or the mean of the two in the middle; none of none.
pub fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[n / 2]),
        n => Some(f64::midpoint(values[n / 2 - 1], values[n / 2])),
    }
}

/// Times `work`, with the CPU time that this process spent meanwhile.
///
/// # Errors
/// Those of `work`.
pub fn time_here<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, Sample)> {
    let (started, cpu) = (Instant::now(), own_cpu());
    let value = work()?;
    let wall = started.elapsed();
    Ok((value, Sample { wall, cpu: Some(own_cpu().saturating_sub(cpu)), ..Sample::default() }))
}

/// Times `work`, with the CPU time of the child processes that it waited for.
///
/// # Errors
/// Those of `work`.
pub fn time_children<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, Sample)> {
    let (started, cpu) = (Instant::now(), children_cpu());
    let value = work()?;
    let wall = started.elapsed();
    Ok((value, Sample { wall, cpu: Some(children_cpu().saturating_sub(cpu)), ..Sample::default() }))
}

/// Times `work`, with the CPU time of this process and of the child processes that it waited for.
///
/// # Errors
/// Those of `work`.
pub fn time_all<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, Sample)> {
    let cpu = || own_cpu() + children_cpu();
    let (started, before) = (Instant::now(), cpu());
    let value = work()?;
    let wall = started.elapsed();
    Ok((value, Sample { wall, cpu: Some(cpu().saturating_sub(before)), ..Sample::default() }))
}

/// User and system time of this process and all its threads.
pub fn own_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

fn children_cpu() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_CHILDREN) else { return Duration::ZERO };
    [usage.user_time(), usage.system_time()]
        .iter()
        .map(|t| {
            Duration::from_secs(t.tv_sec().unsigned_abs()) + Duration::from_micros(t.tv_usec().unsigned_abs())
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), Some(2.5));
        assert_eq!(median(std::iter::empty()), None);
    }

    #[test]
    fn work_in_this_process_is_told_from_work_of_children() {
        let (_, here) = time_here(|| {
            let started = own_cpu();
            while own_cpu() - started < Duration::from_millis(20) {}
            Ok(())
        })
        .unwrap();
        assert!(here.cpu.unwrap() >= Duration::from_millis(20));
    }
}
