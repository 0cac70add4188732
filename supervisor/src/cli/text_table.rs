//! Tables in the layout that scripts cut apart (`docs/conformance.md`, Command line): no borders, every cell padded to its column
//! and followed by four spaces, the last header by one. A cell is one line, whatever is in it. Pure.

use ollmlx_proto::text::printable_line;
use unicode_width::UnicodeWidthStr;

/// Columns that an ordinary cell may take before it wraps at a space.
const CELL_COLUMNS_MAX: usize = 30;
/// The same for the long texts of `show`.
pub const TEXT_COLUMNS_MAX: usize = 100;

/// A table with a header line.
#[must_use]
pub fn with_header(header: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<Vec<String>>> = rows.iter().map(|row| wrap_row(row, CELL_COLUMNS_MAX)).collect();
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.width()).collect();
    widen(&mut widths, &rows);
    let mut out = String::new();
    for (column, cell) in header.iter().enumerate() {
        let gap = if column + 1 == header.len() { 1 } else { 4 };
        push_cell(&mut out, cell, widths[column], gap);
    }
    out.push('\n');
    push_rows(&mut out, &rows, &widths);
    out
}

/// Rows only, each with an empty first column: the body of a section of `show`.
#[must_use]
pub fn indented(rows: &[Vec<String>], columns_max: usize) -> String {
    let rows: Vec<Vec<Vec<String>>> = rows.iter().map(|row| wrap_row(row, columns_max)).collect();
    let mut widths = vec![0; rows.iter().map(Vec::len).max().unwrap_or(0)];
    widen(&mut widths, &rows);
    let mut lines = String::new();
    push_rows(&mut lines, &rows, &widths);
    lines.lines().map(|line| format!("    {line}\n")).collect()
}

fn widen(widths: &mut [usize], rows: &[Vec<Vec<String>>]) {
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.iter().map(|line| line.width()).max().unwrap_or(0).max(*width);
        }
    }
}

fn push_rows(out: &mut String, rows: &[Vec<Vec<String>>], widths: &[usize]) {
    for row in rows {
        let line_count = row.iter().map(Vec::len).max().unwrap_or(1);
        for line in 0..line_count {
            for (cell, width) in row.iter().zip(widths) {
                push_cell(out, cell.get(line).map_or("", String::as_str), *width, 4);
            }
            out.push('\n');
        }
    }
}

fn push_cell(out: &mut String, cell: &str, width: usize, gap: usize) {
    out.push_str(cell);
    let padding = width.saturating_sub(cell.width()) + gap;
    out.extend(std::iter::repeat_n(' ', padding));
}

fn wrap_row(row: &[String], columns_max: usize) -> Vec<Vec<String>> {
    row.iter().map(|cell| wrap_cell(&printable_line(cell), columns_max)).collect()
}

/// Greedy; a word longer than the limit stays whole.
fn wrap_cell(cell: &str, columns_max: usize) -> Vec<String> {
    if cell.width() <= columns_max {
        return vec![cell.to_owned()];
    }
    let mut lines = vec![String::new()];
    for word in cell.split(' ') {
        let line = lines.last_mut().expect("there is always a line");
        if line.is_empty() {
            line.push_str(word);
        } else if line.width() + 1 + word.width() <= columns_max {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: &[&str]) -> Vec<String> {
        cells.iter().map(|cell| (*cell).to_owned()).collect()
    }

    #[test]
    fn list_is_laid_out_byte_for_byte() {
        let table = with_header(
            &["NAME", "ID", "SIZE", "MODIFIED"],
            &[row(&["llama3.2:latest", "a80c4f17acd5", "2.0 GB", "3 days ago"])],
        );
        assert_eq!(
            table,
            "NAME               ID              SIZE      MODIFIED   \n\
             llama3.2:latest    a80c4f17acd5    2.0 GB    3 days ago    \n"
        );
    }

    #[test]
    fn ps_is_laid_out_byte_for_byte() {
        let table = with_header(
            &["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"],
            &[row(&["llama3.2:latest", "a80c4f17acd5", "3.2 GB", "100% GPU", "4096", "4 minutes from now"])],
        );
        assert_eq!(
            table,
            "NAME               ID              SIZE      PROCESSOR    CONTEXT    UNTIL              \n\
             llama3.2:latest    a80c4f17acd5    3.2 GB    100% GPU     4096       4 minutes from now    \n"
        );
    }

    #[test]
    fn an_empty_table_is_its_header() {
        assert_eq!(with_header(&["NAME", "ID", "SIZE", "MODIFIED"], &[]), "NAME    ID    SIZE    MODIFIED \n");
    }

    #[test]
    fn sections_are_indented_by_an_empty_column() {
        let text = indented(&[row(&["architecture", "llama"]), row(&["parameters", "3.2B"])], CELL_COLUMNS_MAX);
        assert_eq!(text, "    architecture    llama    \n    parameters      3.2B     \n");
    }

    #[test]
    fn wide_characters_count_as_two_columns() {
        let table = with_header(&["A", "B"], &[row(&["模型", "x"]), row(&["abcd", "y"])]);
        assert_eq!(table, "A       B \n模型    x    \nabcd    y    \n");
    }

    #[test]
    fn long_cells_wrap_at_spaces_only() {
        let text = "aaaaaaaaaa bbbbbbbbbb cccccccccc dddd";
        assert_eq!(wrap_cell(text, 30), ["aaaaaaaaaa bbbbbbbbbb", "cccccccccc dddd"]);
        assert_eq!(wrap_cell(&"x".repeat(40), 30), ["x".repeat(40)]);
    }
}
