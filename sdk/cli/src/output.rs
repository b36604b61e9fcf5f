//! Prints lists: a table for people, JSON, YAML or names for programs.

use std::io::{IsTerminal, Write};
use std::sync::OnceLock;

use comfy_table::{Attribute, Cell, Color as TableColor, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::arguments::{Color, Output};
use crate::failure::Failure;

static COLOR: OnceLock<bool> = OnceLock::new();

/// Decides once whether standard output gets colour.
pub(crate) fn set_color(wanted: Color) {
    let is_wanted = match wanted {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
    };
    let _ = COLOR.set(is_wanted);
}

fn has_color() -> bool {
    COLOR.get().copied().unwrap_or(false)
}

/// How a cell looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Look {
    #[default]
    Plain,
    Good,
    Waiting,
    Bad,
}

/// One cell of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) text: String,
    pub(crate) look: Look,
}

impl<T: ToString> From<T> for Field {
    fn from(text: T) -> Self {
        Self { text: text.to_string(), look: Look::Plain }
    }
}

/// A column: its heading, and whether only `-o wide` shows it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    pub(crate) heading: &'static str,
    pub(crate) is_wide: bool,
}

/// Shorthand for a column that is always shown.
pub(crate) const fn column(heading: &'static str) -> Column {
    Column { heading, is_wide: false }
}

/// Shorthand for a column of `-o wide`.
pub(crate) const fn wide(heading: &'static str) -> Column {
    Column { heading, is_wide: true }
}

/// What a list shows for one item.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// KIND/NAME
    pub(crate) name: String,
    /// One for each column.
    pub(crate) fields: Vec<Field>,
}

/// Prints `items` (already in their JSON form) or the `rows` of them, as `output` says.
pub(crate) fn print_list<T: Serialize>(
    output: Output,
    columns: &[Column],
    rows: &[Row],
    items: &[T],
) -> Result<(), Failure> {
    match output {
        Output::Json => print(&json(&items)?),
        Output::Yaml => print(&yaml(&items)?),
        Output::Name => {
            print(&rows.iter().map(|row| format!("{}\n", row.name)).collect::<String>())
        }
        Output::Table | Output::Wide => print(&table(columns, rows, output == Output::Wide)),
    }
}

/// Prints one item: as the only row of a table, or the item itself.
pub(crate) fn print_item<T: Serialize>(
    output: Output,
    columns: &[Column],
    row: Row,
    item: &T,
) -> Result<(), Failure> {
    match output {
        Output::Json => print(&json(item)?),
        Output::Yaml => print(&yaml(item)?),
        Output::Name | Output::Table | Output::Wide => print_list(output, columns, &[row], &[item]),
    }
}

/// The table of these rows, a newline at its end; nothing but the headings when there are none.
pub(crate) fn table(columns: &[Column], rows: &[Row], is_wide: bool) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if has_color() {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    let shown: Vec<usize> =
        (0..columns.len()).filter(|index| is_wide || !columns[*index].is_wide).collect();
    table.set_header(
        shown.iter().map(|index| Cell::new(columns[*index].heading).add_attribute(Attribute::Bold)),
    );
    for row in rows {
        table.add_row(
            shown.iter().map(|index| row.fields.get(*index).map_or_else(|| Cell::new(""), cell)),
        );
    }
    for index in 0..shown.len() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 2));
        }
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn cell(field: &Field) -> Cell {
    let cell = Cell::new(printable(&field.text));
    match field.look {
        Look::Plain => cell,
        Look::Good => cell.fg(TableColor::Green),
        Look::Waiting => cell.fg(TableColor::Yellow),
        Look::Bad => cell.fg(TableColor::Red),
    }
}

/// Control characters could rewrite the terminal: what a unit said is shown without them.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Readable JSON with a newline at its end.
pub(crate) fn json<T: Serialize + ?Sized>(value: &T) -> Result<String, Failure> {
    let mut text = serde_json::to_string_pretty(value).map_err(anyhow::Error::from)?;
    text.push('\n');
    Ok(text)
}

/// YAML.
pub(crate) fn yaml<T: Serialize + ?Sized>(value: &T) -> Result<String, Failure> {
    Ok(serde_yaml_ng::to_string(value).map_err(anyhow::Error::from)?)
}

/// Writes to standard output. A reader that went away (`| head`) is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// How long ago, short: `5s`, `3m`, `2h`, `4d`.
pub(crate) fn age(from_ms: i64, now_ms: i64) -> String {
    let seconds = now_ms.saturating_sub(from_ms).max(0) / 1000;
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A number of bytes for people: `1.4 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_and_show_wide_columns_only_when_asked() {
        let columns = [column("NAME"), column("STATE"), wide("ID")];
        let rows = [
            Row {
                name: "unit/a".into(),
                fields: vec!["a".into(), "running".into(), "p1-0".into()],
            },
            Row {
                name: "unit/long-name".into(),
                fields: vec!["long-name".into(), "x\x1b[2J".into(), "p1-1".into()],
            },
        ];
        expect_test::expect![[r"
            NAME       STATE
            a          running
            long-name  x [2J
        "]]
        .assert_eq(&table(&columns, &rows, false));
        assert!(table(&columns, &rows, true).contains("p1-1"));
        assert_eq!(table(&columns, &[], false), "NAME  STATE\n");
    }

    #[test]
    fn ages_are_short() {
        for (ms, text) in [
            (0, "0s"),
            (119_000, "119s"),
            (120_000, "2m"),
            (7_200_000, "2h"),
            (172_800_000, "2d"),
            (-5, "0s"),
        ] {
            assert_eq!(age(0, ms), text);
        }
    }
}
