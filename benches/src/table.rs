//! The results as a page in Markdown.

use std::fmt::Write as _;

use crate::cost::Cost;
use crate::jobs::BASELINE;
use crate::place::FlushCost;
use crate::results::{Cell, Results, Section};

/// The page.
#[must_use]
pub fn render(results: &Results) -> String {
    let mut text = format!(
        "# Side by side\n\n\
         Made by `cargo side-by-side`; `docs/performance.md` says what it means. {}.\n\n\
         The processes of a sum are in this order: of repld the Primary and the two Secondaries, of the quorum the one that the client talks \
         to and the two behind it.\n",
        results.conditions()
    );
    for section in &results.sections {
        let _ = write!(text, "\n## With {}\n\n", section.medium.title());
        if let Some(flush) = section.flush {
            let _ = writeln!(text, "{}\n", disk(flush));
        }
        section_table(&mut text, section);
    }
    if !results.skipped.is_empty() {
        let _ = write!(text, "\n## Skipped\n\n");
        for what in &results.skipped {
            let _ = writeln!(text, "- {what}");
        }
    }
    text
}

fn disk(cost: FlushCost) -> String {
    format!(
        "4 KiB on this disk: written in {:.0} us, flushed after that in {:.0} us, written durably in {:.0} us.",
        cost.write_us, cost.flush_us, cost.durable_write_us
    )
}

fn section_table(text: &mut String, section: &Section) {
    let _ = write!(
        text,
        "| job | system | per second | least to most | mean us | x {BASELINE} | durable | CPU us per operation | system calls per operation | disk flushes per operation |\n\
         |---|---|--:|--:|--:|--:|---|---|---|--:|\n"
    );
    for job in section.jobs() {
        for (number, cell) in section.of_job(job).enumerate() {
            let title = if number == 0 { job.title } else { "" };
            let (least, most) = cell.range();
            let durable = if cell.is_durable() { "yes" } else { "no" };
            let _ = writeln!(
                text,
                "| {title} | {} | {:.0} | {least:.0} to {most:.0} | {:.0} | {} | {durable} | {} | {} | {} |",
                cell.system.title,
                cell.iops(),
                cell.mean_us(),
                section
                    .ratio(cell)
                    .map_or("-".to_owned(), |ratio| format!("{ratio:.2}")),
                shares(cell, 1, |cost| Some(cost.cpu_us_per_op)),
                shares(cell, 2, |cost| cost.syscalls_per_op),
                cell.flushes_per_op()
                    .map_or("-".to_owned(), |flushes| format!("{flushes:.2}")),
            );
        }
    }
}

/// "6.0 = 3.0 + 2.0 + 1.0", a share for each process.
fn shares(cell: &Cell, digits: usize, of: impl Fn(&Cost) -> Option<f64> + Copy) -> String {
    let Some(sum) = cell.sum(of) else {
        return "-".to_owned();
    };
    let all: Vec<String> = cell
        .costs
        .iter()
        .filter_map(of)
        .map(|share| format!("{share:.digits$}"))
        .collect();
    if all.len() == 1 {
        format!("{sum:.digits$}")
    } else {
        format!("{sum:.digits$} = {}", all.join(" + "))
    }
}

#[cfg(test)]
mod tests {
    use crate::results::tests::results;

    #[test]
    fn every_row_has_every_column() {
        let text = super::render(&results());
        let rows: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
        assert_eq!(rows.len(), 2 + 3, "{text}");
        for row in &rows {
            assert_eq!(row.matches('|').count(), 11, "{row}");
        }
        assert!(
            rows[2].contains("| 2.00 | yes | 12.5 | - | 0.50 |"),
            "{}",
            rows[2]
        );
    }
}
