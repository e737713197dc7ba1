//! Rows as bytes: what the payloads of frames hold. Everything that is read
//! here comes from another process and is checked; what is written is not.
//!
//! A dispatch is `num_rows`, `num_choices`, the choices (row, expert, and the
//! weight where the sender wants sums), then the rows. A combine is the digest
//! of the choices that it answers, then rows of f32. All is little-endian.

use chorale_device::Choice;
use chorale_plan::RowFormat;

/// A choice that crossed, with the weight that its row gives it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) choice: Choice,
    pub(crate) weight: f32,
}

/// How dispatches are written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    pub(crate) cols: usize,
    pub(crate) top_k: usize,
    /// Rows of one home in a step.
    pub(crate) max_rows: usize,
    pub(crate) rows: RowFormat,
    pub(crate) has_weights: bool,
}

/// What arrived with one dispatch.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Dispatch {
    /// Each row in turn has one or more.
    pub(crate) wanted: Vec<Wanted>,
    pub(crate) values: Vec<f32>,
}

impl Format {
    fn row_bytes(self) -> usize {
        match self.rows {
            RowFormat::F32 => 4 * self.cols,
            RowFormat::Int8 => 4 + self.cols,
        }
    }

    fn choice_bytes(self) -> usize {
        if self.has_weights { 12 } else { 8 }
    }

    /// Writes a dispatch of the rows `picked` of `values`.
    pub(crate) fn write(self, wanted: &[Wanted], picked: &[u32], values: &[f32]) -> Vec<u8> {
        let len = 8 + wanted.len() * self.choice_bytes() + picked.len() * self.row_bytes();
        let mut out = Vec::with_capacity(len);
        out.extend((picked.len() as u32).to_le_bytes());
        out.extend((wanted.len() as u32).to_le_bytes());
        for Wanted { choice, weight } in wanted {
            out.extend(choice.row.to_le_bytes());
            out.extend(choice.expert.to_le_bytes());
            if self.has_weights {
                out.extend(weight.to_le_bytes());
            }
        }
        for &row in picked {
            let row = &values[row as usize * self.cols..][..self.cols];
            match self.rows {
                RowFormat::F32 => write_f32s(row, &mut out),
                RowFormat::Int8 => write_int8(row, &mut out),
            }
        }
        out
    }

    /// Reads what [`Self::write`] wrote; `is_here` says which experts there are.
    pub(crate) fn read(self, bytes: &[u8], is_here: impl Fn(u32) -> bool) -> Result<Dispatch, String> {
        let (&num_rows, rest) = bytes.split_first_chunk().ok_or("it is cut off")?;
        let (&num_choices, rest) = rest.split_first_chunk().ok_or("it is cut off")?;
        let [num_rows, num_choices] = [num_rows, num_choices].map(|count| u32::from_le_bytes(count) as usize);
        if num_rows > self.max_rows || num_choices > num_rows.saturating_mul(self.top_k) {
            return Err(format!(
                "it has {num_rows} rows and {num_choices} choices, there is room for {} rows of {} each",
                self.max_rows, self.top_k
            ));
        }
        let choices_len = num_choices * self.choice_bytes();
        if rest.len() != choices_len + num_rows * self.row_bytes() {
            return Err(format!("it has {} bytes for {num_rows} rows, {num_choices} choices", rest.len()));
        }
        let (choices, rows) = rest.split_at(choices_len);
        let wanted: Vec<Wanted> = choices.chunks_exact(self.choice_bytes()).map(read_wanted).collect();
        check_order(&wanted, num_rows, self.top_k)?;
        if let Some(wanted) = wanted.iter().find(|wanted| !is_here(wanted.choice.expert)) {
            return Err(format!("it asks for expert {}, which is not here", wanted.choice.expert));
        }
        let mut values = Vec::with_capacity(num_rows * self.cols);
        match self.rows {
            RowFormat::F32 => values.extend(f32s(rows)),
            RowFormat::Int8 => {
                rows.chunks_exact(self.row_bytes()).for_each(|row| read_int8(row, &mut values))
            }
        }
        Ok(Dispatch { wanted, values })
    }
}

fn read_wanted(bytes: &[u8]) -> Wanted {
    let words = bytes.as_chunks::<4>().0;
    let choice = Choice { row: u32::from_le_bytes(words[0]), expert: u32::from_le_bytes(words[1]) };
    Wanted { choice, weight: words.get(2).map_or(0.0, |word| f32::from_le_bytes(*word)) }
}

/// Rows come in order, each with at least one choice and no more than all.
fn check_order(wanted: &[Wanted], num_rows: usize, top_k: usize) -> Result<(), String> {
    let mut next = 0;
    for run in wanted.chunk_by(|one, next| one.choice.row == next.choice.row) {
        if run[0].choice.row as usize != next || run.len() > top_k {
            return Err(format!("{} choices of row {} come for row {next}", run.len(), run[0].choice.row));
        }
        next += 1;
    }
    if next == num_rows { Ok(()) } else { Err(format!("{next} of {num_rows} rows go to experts")) }
}

/// What a combine answers, in a number: ranks that do not agree on it have not
/// routed alike. FNV-1a over the rows' ends and the experts.
pub(crate) fn digest(wanted: &[Wanted]) -> u64 {
    let step = |hash: u64, word: u32| (hash ^ u64::from(word)).wrapping_mul(0x0000_0100_0000_01b3);
    wanted
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, wanted| step(step(hash, wanted.choice.row), wanted.choice.expert))
}

/// Writes a combine.
pub(crate) fn write_combine(digest: u64, values: &[f32]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + 4 * values.len());
    out.extend(digest.to_le_bytes());
    write_f32s(values, &mut out);
    out
}

/// Reads a combine of `len` values that answers what `digest` says.
pub(crate) fn read_combine(
    bytes: &[u8],
    digest: u64,
    len: usize,
) -> Result<impl Iterator<Item = f32>, String> {
    let (&found, rest) = bytes.split_first_chunk().ok_or("it is cut off")?;
    if u64::from_le_bytes(found) != digest {
        return Err("it answers other choices than were asked: the ranks route differently".to_owned());
    }
    if rest.len() != 4 * len {
        return Err(format!("it has {} bytes, {} are due", rest.len(), 4 * len));
    }
    Ok(f32s(rest))
}

pub(crate) fn write_f32s(values: &[f32], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + 4 * values.len(), 0);
    for (bytes, value) in out[start..].as_chunks_mut::<4>().0.iter_mut().zip(values) {
        *bytes = value.to_le_bytes();
    }
}

pub(crate) fn f32s(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes))
}

/// A scale, and integers of -127 to 127 that it multiplies.
fn write_int8(row: &[f32], out: &mut Vec<u8>) {
    let largest = row.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let scale = largest / 127.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    out.extend(scale.to_le_bytes());
    out.extend(row.iter().map(|value| (value * inverse).round().clamp(-127.0, 127.0) as i8 as u8));
}

fn read_int8(bytes: &[u8], values: &mut Vec<f32>) {
    let Some((&scale, integers)) = bytes.split_first_chunk() else { return };
    let scale = f32::from_le_bytes(scale);
    values.extend(integers.iter().map(|&integer| f32::from(integer as i8) * scale));
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: Format = Format { cols: 3, top_k: 2, max_rows: 4, rows: RowFormat::F32, has_weights: true };

    fn wanted(row: u32, expert: u32) -> Wanted {
        Wanted { choice: Choice { row, expert }, weight: 0.25 }
    }

    #[test]
    fn a_dispatch_reads_back() {
        let values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0];
        let list = [wanted(0, 5), wanted(0, 2), wanted(1, 5)];
        let bytes = FORMAT.write(&list, &[0, 2], &values);
        let found = FORMAT.read(&bytes, |_| true).unwrap();
        assert_eq!(found.wanted, list);
        assert_eq!(found.values, [1.0, 2.0, 3.0, 7.0, 8.0, 9.0]);
        assert_eq!(FORMAT.read(&FORMAT.write(&[], &[], &[]), |_| true), Ok(Dispatch::default()));
    }

    #[test]
    fn integers_are_as_near_as_a_half_step() {
        let format = Format { rows: RowFormat::Int8, ..FORMAT };
        let values = [0.1, -2.54, 1.0, 0.0, 0.0, 0.0];
        let bytes = format.write(&[wanted(0, 0), wanted(1, 0)], &[0, 1], &values);
        let found = format.read(&bytes, |_| true).unwrap();
        for (found, value) in found.values.iter().zip(values) {
            assert!((found - value).abs() <= 0.01 + 1e-6, "{found} for {value}");
        }
        assert!(bytes.len() < FORMAT.write(&[wanted(0, 0), wanted(1, 0)], &[0, 1], &values).len());
    }

    #[test]
    fn any_cut_and_any_flipped_byte_is_refused_or_reads_without_panic() {
        for rows in [RowFormat::F32, RowFormat::Int8] {
            let format = Format { rows, ..FORMAT };
            let bytes = format.write(&[wanted(0, 1), wanted(1, 1)], &[0, 1], &[1.0; 6]);
            for len in 0..bytes.len() {
                assert!(format.read(&bytes[..len], |_| true).is_err(), "{len} bytes");
            }
            for index in 0..bytes.len() {
                let mut flipped = bytes.clone();
                flipped[index] ^= 0xff;
                let outcome = format.read(&flipped, |expert| expert == 1);
                // Counts, then rows and experts: only weights and values may be anything.
                let is_checked = index < 8 || (index < 8 + 24 && (index - 8) % 12 < 8);
                assert_eq!(outcome.is_err(), is_checked, "byte {index}");
            }
        }
    }

    #[test]
    fn rows_without_choices_out_of_order_or_too_many_are_refused() {
        let read = |list: &[Wanted], num_rows: usize| {
            let picked: Vec<u32> = (0..num_rows as u32).collect();
            FORMAT.read(&FORMAT.write(list, &picked, &[0.0; 30]), |expert| expert < 9)
        };
        assert!(read(&[wanted(0, 0), wanted(1, 0)], 2).is_ok());
        assert!(read(&[wanted(0, 0)], 2).is_err(), "row 1 goes nowhere");
        assert!(read(&[wanted(1, 0), wanted(0, 0)], 2).is_err(), "out of order");
        assert!(read(&[wanted(0, 0), wanted(0, 1), wanted(0, 2), wanted(1, 0)], 2).is_err(), "top-2");
        assert!(read(&[wanted(0, 9)], 1).is_err(), "expert 9 is not here");
        assert!(read(&(0..5).map(|row| wanted(row, 0)).collect::<Vec<_>>(), 5).is_err(), "room for 4");
    }

    #[test]
    fn a_combine_answers_what_was_asked() {
        let asked = digest(&[wanted(0, 1), wanted(0, 2)]);
        let bytes = write_combine(asked, &[1.0, -2.0]);
        assert_eq!(read_combine(&bytes, asked, 2).unwrap().collect::<Vec<_>>(), [1.0, -2.0]);
        assert!(read_combine(&bytes, asked, 3).is_err());
        assert!(read_combine(&bytes[..7], asked, 2).is_err());
        assert!(read_combine(&bytes, digest(&[wanted(0, 2), wanted(0, 1)]), 2).is_err());
    }
}
