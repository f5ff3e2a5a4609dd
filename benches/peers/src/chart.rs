//! The pairs as a chart: a row for each candidate, a column for each way to reach the server.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::rounds::{Figure, Outcome};

const WIDTH: i32 = 840;
const NAMES_WIDTH: i32 = 190;
const COLUMN_WIDTH: i32 = 210;
/// Of the longest bar; what is left of its column is for the figure behind it.
const BAR_WIDTH: i32 = 130;
const ROW_HEIGHT: i32 = 22;
const TOP: i32 = 34;

/// The backend draws it at four fifths of that.
const FONT_SIZE: i32 = 15;

const TEXT: RGBColor = RGBColor(87, 96, 106);
const OURS: RGBColor = RGBColor(46, 134, 222);
const YARDSTICK: RGBColor = RGBColor(46, 160, 90);
const PEER: RGBColor = RGBColor(148, 158, 170);

/// The text follows the reader's choice of light or dark; the bars show on both.
const STYLE: &str = "<style>text{fill:#57606a}\
    @media(prefers-color-scheme:dark){text{fill:#b1bac4}}</style>";

pub(crate) fn draw(outcomes: &[Outcome]) -> String {
    let names = names(outcomes);
    let rows = i32::try_from(names.len()).expect("few rows");
    let height = TOP + rows * ROW_HEIGHT + 10;
    let mut svg = String::new();
    {
        let size = (unsigned(WIDTH), unsigned(height));
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        for (name, y) in names.iter().zip(rows_down()) {
            text(&area, name, (NAMES_WIDTH - 10, y + ROW_HEIGHT / 2), HPos::Right);
        }
        let longest = outcomes.iter().flat_map(|outcome| &outcome.figures).map(micros);
        let longest = longest.fold(0.0, f64::max);
        for (outcome, column) in outcomes.iter().zip(0..) {
            draw_column(&area, outcome, &names, longest, NAMES_WIDTH + column * COLUMN_WIDTH);
        }
        area.present().expect("an SVG");
    }
    let head = svg.find('>').map_or(0, |end| end + 1);
    svg.insert_str(head, STYLE);
    svg
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw_column(area: &Area<'_>, outcome: &Outcome, names: &[&str], longest: f64, left: i32) {
    text(area, &format!("{}: µs (ratio)", outcome.title), (left, TOP / 2), HPos::Left);
    for (name, y) in names.iter().zip(rows_down()) {
        let figure = outcome.figures.iter().find(|figure| figure.name == *name);
        let Some(figure) = figure else { continue };
        let right = left + pixels(micros(figure) / longest);
        let bar = [(left, y + 4), (right, y + ROW_HEIGHT - 4)];
        area.draw(&Rectangle::new(bar, color(name).filled())).expect("a bar");
        let label = format!("{:.1} ({:.2})", micros(figure), figure.ratio);
        text(area, &label, (right + 5, y + ROW_HEIGHT / 2), HPos::Left);
    }
}

fn text(area: &Area<'_>, text: &str, at: (i32, i32), side: HPos) {
    let style =
        TextStyle::from(("sans-serif", FONT_SIZE)).color(&TEXT).pos(Pos::new(side, VPos::Center));
    area.draw(&Text::new(text, at, style)).expect("a text");
}

fn color(name: &str) -> RGBColor {
    match name {
        "pglock" | "pglock, blocking" => OURS,
        "bare socket" => YARDSTICK,
        _ => PEER,
    }
}

/// In the order of the first column; TLS has not all of them.
fn names(outcomes: &[Outcome]) -> Vec<&'static str> {
    let mut names = Vec::new();
    for figure in outcomes.iter().flat_map(|outcome| &outcome.figures) {
        if !names.contains(&figure.name) {
            names.push(figure.name);
        }
    }
    names
}

fn rows_down() -> impl Iterator<Item = i32> {
    (0..).map(|row| TOP + row * ROW_HEIGHT)
}

fn micros(figure: &Figure) -> f64 {
    figure.median.as_secs_f64() * 1e6
}

/// The length of a bar, by its share of the longest.
fn pixels(share: f64) -> i32 {
    (0..=BAR_WIDTH)
        .rev()
        .find(|&pixels| f64::from(pixels) <= share * f64::from(BAR_WIDTH))
        .unwrap_or(0)
}

fn unsigned(pixels: i32) -> u32 {
    pixels.unsigned_abs()
}
