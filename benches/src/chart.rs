//! The results as an SVG: a panel for each job and place, a bar for each system.
//!
//! A filled bar is durable, a hatched one is not. Bars of a panel have a scale of their own.

use std::fmt::Write as _;

use crate::jobs::{BASELINE, Job};
use crate::results::{Cell, Results, Section};

const PANEL_WIDTH: f64 = 560.0;
const MARGIN: f64 = 24.0;
const NAME_WIDTH: f64 = 178.0;
const VALUE_WIDTH: f64 = 118.0;
const BAR_HEIGHT: f64 = 15.0;
const BAR_STEP: f64 = 20.0;
const PANEL_HEAD: f64 = 30.0;
const PANEL_GAP: f64 = 16.0;
const TOP: f64 = 92.0;
const FOOT: f64 = 44.0;

const OURS: &str = "#1765a3";
const MIRROR: &str = "#c2611a";
const OTHERS: &str = "#6b7280";

/// The picture.
#[must_use]
pub fn render(results: &Results) -> String {
    let jobs = results
        .sections
        .first()
        .map(Section::jobs)
        .unwrap_or_default();
    let columns = results.sections.len().max(1) as f64;
    let width = MARGIN + columns * (PANEL_WIDTH + MARGIN);
    let heights: Vec<f64> = jobs.iter().map(|job| height(results, job)).collect();
    let height = TOP + heights.iter().sum::<f64>() + FOOT;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"DejaVu Sans, Helvetica, Arial, sans-serif\">\n<defs>\n"
    );
    for (name, colour) in [("ours", OURS), ("mirror", MIRROR), ("others", OTHERS)] {
        let _ = writeln!(
            svg,
            "<pattern id=\"{name}\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\">\
             <rect width=\"6\" height=\"6\" fill=\"{colour}\" fill-opacity=\"0.18\"/>\
             <rect width=\"2.2\" height=\"6\" fill=\"{colour}\"/></pattern>"
        );
    }
    let _ = write!(
        svg,
        "</defs>\n<rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    text(
        &mut svg,
        (MARGIN, 32.0),
        (18, "#111827", "start", true),
        "Requests per second over NBD, one client",
    );
    text(
        &mut svg,
        (MARGIN, 52.0),
        (11, "#4b5563", "start", false),
        &results.conditions(),
    );
    for (column, section) in (0_u32..).zip(&results.sections) {
        let left = MARGIN + f64::from(column) * (PANEL_WIDTH + MARGIN);
        let title = section.medium.title();
        text(
            &mut svg,
            (left, TOP - 14.0),
            (14, "#111827", "start", true),
            title,
        );
        let mut top = TOP;
        for (job, height) in jobs.iter().zip(&heights) {
            panel(&mut svg, section, job, (left, top));
            top += height;
        }
    }
    let note = format!(
        "Filled: what was answered (or read) survives a power cut of everything. Hatched: it may not. (n.n x): times {BASELINE}, median of ratios."
    );
    text(
        &mut svg,
        (MARGIN, height - 18.0),
        (11, "#4b5563", "start", false),
        &note,
    );
    svg.push_str("</svg>\n");
    svg
}

fn height(results: &Results, job: &Job) -> f64 {
    let bars = results
        .sections
        .iter()
        .map(|section| section.of_job(job).count());
    PANEL_HEAD + bars.max().unwrap_or(0) as f64 * BAR_STEP + PANEL_GAP
}

fn panel(svg: &mut String, section: &Section, job: &Job, (left, top): (f64, f64)) {
    text(
        svg,
        (left, top + 16.0),
        (12, "#111827", "start", true),
        job.title,
    );
    let most = section.of_job(job).map(Cell::iops).fold(1.0, f64::max);
    let bars_left = left + NAME_WIDTH;
    let room = PANEL_WIDTH - NAME_WIDTH - VALUE_WIDTH;
    let mut y = top + PANEL_HEAD - 4.0;
    for cell in section.of_job(job) {
        let (colour, pattern) = colours(cell);
        let fill = if cell.is_durable() {
            colour.to_owned()
        } else {
            format!("url(#{pattern})")
        };
        let baseline = y + BAR_HEIGHT - 3.5;
        let place = (bars_left - 8.0, baseline);
        text(svg, place, (11, "#111827", "end", false), cell.system.title);
        let length = (cell.iops() / most * room).max(1.0);
        let _ = writeln!(
            svg,
            "<rect x=\"{bars_left}\" y=\"{y}\" width=\"{length:.1}\" height=\"{BAR_HEIGHT}\" fill=\"{fill}\" stroke=\"{colour}\" stroke-width=\"0.8\"/>"
        );
        let mut value = grouped(cell.iops());
        if cell.system.name != BASELINE
            && let Some(ratio) = section.ratio(cell)
        {
            let _ = write!(value, "  ({ratio:.1} x)");
        }
        let place = (bars_left + length + 6.0, baseline);
        text(svg, place, (11, "#111827", "start", false), &value);
        y += BAR_STEP;
    }
}

fn colours(cell: &Cell) -> (&'static str, &'static str) {
    if cell.system.is_ours() {
        (OURS, "ours")
    } else if cell.system.name == BASELINE {
        (MIRROR, "mirror")
    } else {
        (OTHERS, "others")
    }
}

/// "12 345".
fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n) % 3 == 0 {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

type Look = (u32, &'static str, &'static str, bool);

fn text(svg: &mut String, (x, y): (f64, f64), (size, colour, anchor, bold): Look, words: &str) {
    let weight = if bold { " font-weight=\"bold\"" } else { "" };
    let words = words
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" fill=\"{colour}\" text-anchor=\"{anchor}\"{weight}>{words}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::results;

    #[test]
    fn durable_bars_are_filled_and_others_hatched() {
        let svg = render(&results());
        let bar = |fill: &str| {
            svg.lines()
                .filter(|l| l.starts_with("<rect x=") && l.contains(fill))
                .count()
        };
        assert_eq!(bar(&format!("fill=\"{OURS}\"")), 1, "{svg}");
        assert_eq!(bar("fill=\"url(#mirror)\""), 1, "{svg}");
        assert_eq!(svg.matches("<svg").count(), svg.matches("</svg>").count());
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    }

    #[test]
    fn digits_are_in_groups() {
        assert_eq!(grouped(7.4), "7");
        assert_eq!(grouped(1000.0), "1 000");
        assert_eq!(grouped(1_234_567.0), "1 234 567");
    }
}
