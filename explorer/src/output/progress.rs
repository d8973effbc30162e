//! Draws how far a session is, on standard error: one line a step, in place on a terminal, line by line elsewhere.

use std::collections::BTreeMap;
use std::time::Duration;

use common::messages::Step;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{Output, human};
use crate::follow::{SessionView, StepState};

/// The drawing of one session.
pub(crate) struct Progress<'a> {
    output: &'a Output,
    drawing: Option<MultiProgress>,
    bars: BTreeMap<(u32, Step), ProgressBar>,
    /// What plain lines have said already.
    said: Vec<String>,
}

impl<'a> Progress<'a> {
    pub(crate) fn new(output: &'a Output) -> Self {
        Self {
            output,
            drawing: output.draws_progress().then(MultiProgress::new),
            bars: BTreeMap::new(),
            said: Vec::new(),
        }
    }

    /// Brings the drawing to what the view says.
    pub(crate) fn draw(&mut self, view: &SessionView) {
        match self.drawing.clone() {
            Some(drawing) => self.draw_bars(&drawing, view),
            None => {
                for line in plain_lines(view) {
                    if !self.said.contains(&line) {
                        self.output.note(&line);
                        self.said.push(line);
                    }
                }
            }
        }
        if self.drawing.is_some() {
            for warning in &view.warnings {
                let line = format!("warning: {}", warning.text);
                if !self.said.contains(&line) {
                    self.note(&line);
                    self.said.push(line);
                }
            }
        }
    }

    /// Says something between the lines.
    pub(crate) fn note(&self, text: &str) {
        match &self.drawing {
            Some(drawing) => drawing.suspend(|| self.output.note(text)),
            None => self.output.note(text),
        }
    }

    /// The last picture, left to stand.
    pub(crate) fn finish(&mut self, view: &SessionView) {
        self.draw(view);
        for bar in self.bars.values() {
            if !bar.is_finished() {
                bar.abandon();
            }
        }
    }

    fn draw_bars(&mut self, drawing: &MultiProgress, view: &SessionView) {
        for (step, state) in &view.steps {
            let bar = self.bars.entry((view.attempt, *step)).or_insert_with(|| {
                let bar = drawing.add(ProgressBar::new_spinner());
                bar.set_style(style("{spinner} {prefix:9} {elapsed:>4} {wide_msg}"));
                bar.set_prefix(step.as_str());
                bar.enable_steady_tick(Duration::from_millis(120));
                bar
            });
            if bar.is_finished() {
                continue;
            }
            match state {
                StepState::Running(_) => bar.set_message(running_text(state)),
                StepState::Done { duration_ms } => {
                    bar.set_style(style("✔ {prefix:9} {wide_msg}"));
                    bar.finish_with_message(human::duration_ms(*duration_ms));
                }
                StepState::Failed => {
                    bar.set_style(style("✘ {prefix:9} {wide_msg}"));
                    bar.finish_with_message("failed");
                }
            }
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// What a running step says of itself.
fn running_text(state: &StepState) -> String {
    let StepState::Running(Some(progress)) = state else {
        return String::new();
    };
    match (progress.done_bytes, progress.total_bytes) {
        (Some(done), Some(total)) => format!(
            "{} ({} of {})",
            progress.text,
            human::size(done),
            human::size(total)
        ),
        (Some(done), None) => format!("{} ({})", progress.text, human::size(done)),
        (None, _) => progress.text.clone(),
    }
}

/// One line for each thing that has happened: the same line is said once.
fn plain_lines(view: &SessionView) -> Vec<String> {
    let attempt = match view.attempt {
        0 | 1 => String::new(),
        number => format!(" (attempt {number})"),
    };
    let mut lines = Vec::new();
    for (step, state) in &view.steps {
        lines.push(match state {
            StepState::Running(None) => format!("{step} …{attempt}"),
            StepState::Running(Some(_)) => format!("{step} … {}{attempt}", running_text(state)),
            StepState::Done { duration_ms } => {
                format!(
                    "{step} done in {}{attempt}",
                    human::duration_ms(*duration_ms)
                )
            }
            StepState::Failed => format!("{step} failed{attempt}"),
        });
    }
    for warning in &view.warnings {
        lines.push(format!("warning: {}", warning.text));
    }
    lines
}

#[cfg(test)]
mod tests {
    use common::messages::{StepProgress, Warning, WarningCode};

    use super::*;
    use crate::output::samples;

    #[test]
    fn without_a_terminal_each_thing_that_happens_is_one_line() {
        let mut view = SessionView::new(samples::ID.parse().unwrap());
        let progress = StepProgress {
            step: Step::Recover,
            text: "replayed 0/3000060 of 0/5000100".into(),
            done_bytes: Some(16 << 20),
            total_bytes: Some(48 << 20),
        };
        view.steps = vec![
            (Step::Validate, StepState::Done { duration_ms: 210 }),
            (Step::Mount, StepState::Running(None)),
            (Step::Recover, StepState::Running(Some(progress))),
            (Step::Start, StepState::Failed),
        ];
        view.warnings.push(Warning {
            code: WarningCode::SlowerMode,
            text: "no passthrough; use Linux 6.9 or later".into(),
        });
        assert_eq!(
            plain_lines(&view),
            [
                "validate done in 0.2 s",
                "mount …",
                "recover … replayed 0/3000060 of 0/5000100 (16.0 MiB of 48.0 MiB)",
                "start failed",
                "warning: no passthrough; use Linux 6.9 or later",
            ]
        );
        view.attempt = 2;
        assert_eq!(plain_lines(&view)[1], "mount … (attempt 2)");
    }
}
