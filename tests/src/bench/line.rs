//! A line of the table: what was measured on both sides, and what is wanted of it. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::plan::Group;

/// Which direction is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// Seconds, bytes, growth.
    Lower,
    /// Anything per second.
    Higher,
}

/// What is wanted of a line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// Our own number, in the line's unit, is at most this.
    OursAtMost(f64),
    /// We are at least this good against the peer.
    RatioAtLeast(f64),
    /// Both.
    OursAtMostAndRatioAtLeast(f64, f64),
}

impl Goal {
    fn text(self) -> String {
        match self {
            Goal::OursAtMost(most) => format!("ours <= {most}"),
            Goal::RatioAtLeast(least) => format!("ratio >= {least}"),
            Goal::OursAtMostAndRatioAtLeast(most, least) => {
                format!("ours <= {most} and ratio >= {least}")
            }
        }
    }

    fn is_reached(self, ours: f64, ratio: Option<f64>) -> bool {
        let ratio_is = |least: f64| ratio.is_some_and(|ratio| ratio >= least);
        match self {
            Goal::OursAtMost(most) => ours <= most,
            Goal::RatioAtLeast(least) => ratio_is(least),
            Goal::OursAtMostAndRatioAtLeast(most, least) => ours <= most && ratio_is(least),
        }
    }
}

/// A line that can be measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// Its name; `./bench NAME` takes the beginning of one.
    pub name: String,
    /// Who measures it.
    pub group: Group,
    /// Unit of both numbers.
    pub unit: &'static str,
    /// Which direction is better.
    pub better: Better,
    /// What it is compared to.
    pub peer_name: Option<&'static str>,
    /// What is wanted.
    pub goal: Option<Goal>,
}

/// A measured line.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// Its name.
    pub name: String,
    /// Unit of both numbers.
    pub unit: String,
    /// The median of our rounds.
    pub ours: f64,
    /// The median of the peer's rounds.
    pub peer: Option<f64>,
    /// What we are compared to.
    pub peer_name: Option<String>,
    /// How good we are against the peer: 2 is twice as good, whichever direction is better.
    pub ratio: Option<f64>,
    /// What is wanted.
    pub goal: Option<String>,
    /// Whether that was reached.
    pub reached: Option<bool>,
    /// How often we were measured.
    pub rounds: usize,
}

#[derive(Debug, Clone, Default)]
struct Samples {
    ours: Vec<f64>,
    peer: Vec<f64>,
}

/// Collects what was measured for the lines that are wanted.
#[derive(Debug)]
pub struct Ledger {
    specs: Vec<Spec>,
    samples: BTreeMap<String, Samples>,
    left_out: BTreeMap<String, String>,
}

impl Ledger {
    /// For these lines.
    pub fn new(specs: Vec<Spec>) -> Self {
        Self {
            specs,
            samples: BTreeMap::new(),
            left_out: BTreeMap::new(),
        }
    }

    /// The lines.
    pub fn wanted(&self) -> impl Iterator<Item = &Spec> {
        self.specs.iter()
    }

    /// Whether a line is wanted.
    pub fn wants(&self, name: &str) -> bool {
        self.specs.iter().any(|spec| spec.name == name)
    }

    /// A round of ours.
    pub fn ours(&mut self, name: &str, value: f64) {
        self.of(name).ours.push(value);
    }

    /// A round of the peer.
    pub fn peer(&mut self, name: &str, value: f64) {
        self.of(name).peer.push(value);
    }

    /// Says why a line, if it is wanted, cannot be measured here; that is no failure.
    pub fn leave_out(&mut self, name: &str, reason: &str) {
        if self.wants(name) {
            self.left_out.insert(name.to_owned(), reason.to_owned());
        }
    }

    /// The lines that were left out, for people.
    pub fn left_out(&self) -> String {
        let lines = self.left_out.iter();
        lines
            .map(|(name, reason)| format!("{name} was not measured: {reason}\n"))
            .collect()
    }

    fn of(&mut self, name: &str) -> &mut Samples {
        self.samples.entry(name.to_owned()).or_default()
    }

    /// The medians of a line so far.
    pub fn medians(&self, name: &str) -> (Option<f64>, Option<f64>) {
        let samples = self.samples.get(name);
        (
            samples.and_then(|samples| median(&samples.ours)),
            samples.and_then(|samples| median(&samples.peer)),
        )
    }

    /// The lines that were measured.
    pub fn lines(&self) -> Vec<Line> {
        self.specs
            .iter()
            .filter_map(|spec| line(spec, self.samples.get(&spec.name)?))
            .collect()
    }
}

fn line(spec: &Spec, samples: &Samples) -> Option<Line> {
    let ours = median(&samples.ours)?;
    let peer = median(&samples.peer);
    let ratio = peer.map(|peer| match spec.better {
        Better::Lower => peer / ours,
        Better::Higher => ours / peer,
    });
    Some(Line {
        name: spec.name.clone(),
        unit: spec.unit.to_owned(),
        ours,
        peer,
        peer_name: spec.peer_name.map(str::to_owned),
        ratio,
        goal: spec.goal.map(Goal::text),
        reached: spec.goal.map(|goal| goal.is_reached(ours, ratio)),
        rounds: samples.ours.len(),
    })
}

/// The middle one, or the mean of the two in the middle.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *sorted.get(sorted.len() / 2 - 1)?;
    Some(f64::midpoint(lower, upper))
}

/// The table for people.
pub fn table(lines: &[Line]) -> String {
    let mut rows = vec![
        [
            "NAME",
            "UNIT",
            "OURS",
            "PEER",
            "RATIO",
            "GOAL",
            "REACHED",
            "ROUNDS",
            "COMPARED TO",
        ]
        .map(str::to_owned),
    ];
    let optional = |value: Option<f64>| value.map_or("-".to_owned(), number);
    rows.extend(lines.iter().map(|line| {
        [
            line.name.clone(),
            line.unit.clone(),
            number(line.ours),
            optional(line.peer),
            optional(line.ratio),
            line.goal.clone().unwrap_or_else(|| "-".to_owned()),
            match line.reached {
                Some(true) => "yes",
                Some(false) => "NO",
                None => "-",
            }
            .to_owned(),
            line.rounds.to_string(),
            line.peer_name.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    }));
    let mut widths = [0; 9];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.len().max(*width);
        }
    }
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (at, (cell, width)) in row.iter().zip(widths).enumerate() {
            let is_number = (2..=4).contains(&at) || at == 7;
            let written = match is_number {
                true => write!(line, "{cell:>width$}  "),
                false => write!(line, "{cell:<width$}  "),
            };
            written.unwrap_or_default();
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(better: Better, goal: Goal) -> Spec {
        Spec {
            name: "a/line".to_owned(),
            group: Group::Scan,
            unit: "s",
            better,
            peer_name: Some("cp"),
            goal: Some(goal),
        }
    }

    fn measured(better: Better, goal: Goal, ours: &[f64], peer: &[f64]) -> Line {
        let mut ledger = Ledger::new(vec![spec(better, goal)]);
        for value in ours {
            ledger.ours("a/line", *value);
        }
        for value in peer {
            ledger.peer("a/line", *value);
        }
        ledger.lines().remove(0)
    }

    #[test]
    fn a_median_is_the_middle_and_nothing_has_none() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn a_ratio_says_how_good_ours_is_whichever_direction_is_better() {
        let goal = Goal::RatioAtLeast(4.0);
        let times = measured(Better::Lower, goal, &[2.0, 1.0, 9.0], &[8.0]);
        assert_eq!(
            (times.ratio, times.reached, times.rounds),
            (Some(4.0), Some(true), 3)
        );
        let speeds = measured(Better::Higher, goal, &[2.0], &[8.0]);
        assert_eq!((speeds.ratio, speeds.reached), (Some(0.25), Some(false)));
    }

    #[test]
    fn a_goal_with_two_parts_needs_both_and_a_missing_peer_reaches_no_ratio() {
        let goal = Goal::OursAtMostAndRatioAtLeast(3.0, 10.0);
        let reached = |ours, peer: &[f64]| measured(Better::Lower, goal, &[ours], peer).reached;
        assert_eq!(reached(2.0, &[30.0]), Some(true));
        assert_eq!(reached(4.0, &[80.0]), Some(false));
        assert_eq!(reached(2.0, &[10.0]), Some(false));
        assert_eq!(reached(2.0, &[]), Some(false));
    }

    #[test]
    fn a_line_that_is_left_out_is_named_and_is_not_in_the_table() {
        let mut ledger = Ledger::new(vec![spec(Better::Lower, Goal::OursAtMost(1.0))]);
        ledger.leave_out("another/line", "nobody wants it");
        assert_eq!(ledger.left_out(), "");
        ledger.leave_out("a/line", "pgbackrest is not installed");
        assert_eq!(
            ledger.left_out(),
            "a/line was not measured: pgbackrest is not installed\n"
        );
        assert!(ledger.lines().is_empty());
    }

    #[test]
    fn a_table_has_a_row_for_each_line() {
        let line = measured(Better::Lower, Goal::OursAtMost(3.0), &[1.234], &[]);
        let text = table(&[line]);
        let row: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(
            row,
            [
                "a/line", "s", "1.23", "-", "-", "ours", "<=", "3", "yes", "1", "cp"
            ]
        );
    }
}
