//! Statements over many rows at once.

/// The most rows of one statement.
const MOST: usize = 128;

/// Parts `items` into portions of 128, 64, 32 … 1: a statement over each is one of a few, and prepared already.
pub(super) fn portions<T>(mut items: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let size = 1 << items.len().min(MOST).checked_ilog2()?;
        let (portion, rest) = items.split_at(size);
        items = rest;
        Some(portion)
    })
}

/// Placeholders for `rows` rows of `columns` values: `(?,?),(?,?)`.
///
/// To look rows up by a key of several columns, join `(VALUES …) v` to their table: for `(a, b) IN (VALUES …)` SQLite
/// reads the whole table.
pub(super) fn values(rows: usize, columns: usize) -> String {
    let row = format!("({})", marks(columns));
    joined(&row, rows)
}

/// Placeholders for a list: `?,?,?`.
pub(super) fn marks(count: usize) -> String {
    joined("?", count)
}

fn joined(item: &str, count: usize) -> String {
    let mut text = String::with_capacity((item.len() + 1) * count);
    for at in 0..count {
        if at > 0 {
            text.push(',');
        }
        text.push_str(item);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portions_have_few_sizes_and_leave_nothing_out() {
        for count in 0..600usize {
            let items: Vec<usize> = (0..count).collect();
            let parts: Vec<&[usize]> = portions(&items).collect();
            assert_eq!(parts.concat(), items);
            assert!(
                parts
                    .iter()
                    .all(|part| part.len().is_power_of_two() && part.len() <= MOST)
            );
        }
        assert_eq!(values(2, 3), "(?,?,?),(?,?,?)");
        assert_eq!(marks(2), "?,?");
    }
}
