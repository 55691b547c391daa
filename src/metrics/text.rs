//! One scrape as text, in Prometheus's exposition format 0.0.4.
//!
//! Samples may be added in any order; those of one metric come out together, under its HELP and TYPE lines. A metric without samples still has
//! these two lines, so that one scrape says what there is.

use super::histogram::{BOUNDS, Observed};
use super::names::Metric;
use std::fmt::Write;

/// What HTTP calls the format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A sample's value.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    /// Exact.
    Whole(u64),
    /// Seconds and the like.
    Real(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Whole(value as u64)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Whole(value.into())
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct Exposition {
    /// The samples of each metric, by its place in [`Metric::ALL`].
    samples: Vec<String>,
}

impl Default for Exposition {
    fn default() -> Self {
        Self {
            samples: vec![String::new(); Metric::ALL.len()],
        }
    }
}

impl Exposition {
    /// Adds a sample.
    pub fn add(&mut self, metric: Metric, labels: &[(&str, &str)], value: impl Into<Value>) {
        sample(self.of(metric), metric.name(), labels, value.into());
    }

    /// Adds the samples of a histogram.
    pub fn histogram(&mut self, metric: Metric, labels: &[(&str, &str)], observed: &Observed) {
        let (name, text) = (metric.name(), self.of(metric));
        let bucket = format!("{name}_bucket");
        for (index, count) in observed.cumulative.iter().enumerate() {
            let bound = BOUNDS
                .get(index)
                .map_or_else(|| "+Inf".to_owned(), |nanoseconds| real(seconds(*nanoseconds)));
            let mut all = labels.to_vec();
            all.push(("le", &bound));
            sample(text, &bucket, &all, Value::Whole(*count));
        }
        let sum = Value::Real(seconds(observed.nanoseconds));
        sample(text, &format!("{name}_sum"), labels, sum);
        let count = Value::Whole(observed.cumulative[BOUNDS.len()]);
        sample(text, &format!("{name}_count"), labels, count);
    }

    /// The whole text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (metric, samples) in Metric::ALL.iter().zip(&self.samples) {
            let name = metric.name();
            text.push_str(&format!(
                "# HELP {name} {}\n# TYPE {name} {}\n{samples}",
                escaped(metric.help(), false),
                metric.kind()
            ));
        }
        text
    }

    fn of(&mut self, metric: Metric) -> &mut String {
        &mut self.samples[metric as usize]
    }
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

fn sample(text: &mut String, name: &str, labels: &[(&str, &str)], value: Value) {
    text.push_str(name);
    for (index, (label, of)) in labels.iter().enumerate() {
        text.push(if index == 0 { '{' } else { ',' });
        // Writing to a string cannot fail.
        let _ = write!(text, "{label}=\"{}\"", escaped(of, true));
    }
    if !labels.is_empty() {
        text.push('}');
    }
    let value = match value {
        Value::Whole(value) => value.to_string(),
        Value::Real(value) => real(value),
    };
    let _ = writeln!(text, " {value}");
}

fn real(value: f64) -> String {
    if value == f64::INFINITY {
        "+Inf".to_owned()
    } else if value == f64::NEG_INFINITY {
        "-Inf".to_owned()
    } else {
        value.to_string()
    }
}

/// In a label's value the quote is escaped, too.
fn escaped(text: &str, quote: bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => escaped.push_str("\\\\"),
            '\n' => escaped.push_str("\\n"),
            '"' if quote => escaped.push_str("\\\""),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Histogram;
    use std::time::Duration;

    fn lines(exposition: &Exposition, name: &str) -> Vec<String> {
        let text = exposition.text();
        let of = |line: &&str| line.starts_with(name) || line.starts_with(&format!("# TYPE {name}"));
        text.lines().filter(of).map(str::to_owned).collect()
    }

    #[test]
    fn samples_of_a_metric_stand_together_with_labels_escaped() {
        let mut exposition = Exposition::default();
        let odd = [("volume", "a\"b\\c\nd"), ("node", "n1")];
        exposition.add(Metric::NodeVolumes, &[("volume_type", "master")], 3_usize);
        exposition.add(Metric::VolumeEpoch, &odd, u64::MAX);
        exposition.add(Metric::NodeVolumes, &[("volume_type", "replica")], 0_usize);
        exposition.add(Metric::ProcessThreads, &[], true);
        exposition.add(Metric::ProcessCpu, &[], 0.25);
        assert_eq!(
            lines(&exposition, "storageos_node_volumes_total"),
            [
                "# TYPE storageos_node_volumes_total gauge",
                "storageos_node_volumes_total{volume_type=\"master\"} 3",
                "storageos_node_volumes_total{volume_type=\"replica\"} 0",
            ]
        );
        assert_eq!(
            lines(&exposition, "storageos_volume_epoch{"),
            ["storageos_volume_epoch{volume=\"a\\\"b\\\\c\\nd\",node=\"n1\"} 18446744073709551615"]
        );
        assert_eq!(lines(&exposition, "process_threads")[1], "process_threads 1");
        assert_eq!(
            lines(&exposition, "process_cpu_seconds_total")[1],
            "process_cpu_seconds_total 0.25"
        );
    }

    #[test]
    fn a_histogram_has_cumulative_buckets_a_sum_and_a_count() {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_micros(80));
        histogram.observe(Duration::from_secs(2));
        histogram.observe(Duration::from_secs(60));
        let mut exposition = Exposition::default();
        exposition.histogram(
            Metric::VolumeBackendWriteSeconds,
            &[("volume", "v")],
            &histogram.observed(),
        );
        let name = Metric::VolumeBackendWriteSeconds.name();
        let found = lines(&exposition, name);
        assert_eq!(found.len(), 1 + BOUNDS.len() + 1 + 2);
        for line in [
            format!("{name}_bucket{{volume=\"v\",le=\"0.00005\"}} 0"),
            format!("{name}_bucket{{volume=\"v\",le=\"0.0001\"}} 1"),
            format!("{name}_bucket{{volume=\"v\",le=\"1\"}} 1"),
            format!("{name}_bucket{{volume=\"v\",le=\"30\"}} 2"),
            format!("{name}_bucket{{volume=\"v\",le=\"+Inf\"}} 3"),
            format!("{name}_sum{{volume=\"v\"}} 62.00008"),
            format!("{name}_count{{volume=\"v\"}} 3"),
        ] {
            assert!(found.contains(&line), "{line}\n{found:#?}");
        }
    }
}
