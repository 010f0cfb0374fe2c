//! Sizes as people write them: `4096`, `"16MiB"`, `"1TiB"`.

const UNITS: [(&str, u32); 4] = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];

/// Why a text is no size.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SizeError {
    /// Neither bytes nor a unit.
    #[error(
        "{0:?} is no size; write a whole number with KiB, MiB, GiB or TiB, for example \"8GiB\""
    )]
    Unknown(String),
    /// A decimal unit, which would be a different number.
    #[error("{found:?} has a unit that is not known; write {instead:?}")]
    DecimalUnit {
        /// The text.
        found: String,
        /// The same with a unit that is known.
        instead: String,
    },
    /// More than 64 bits.
    #[error("{0:?} is too large; write less than 16384 TiB")]
    TooLarge(String),
    /// Less than nothing.
    #[error("{0} is negative; write a number of bytes, or a size such as \"8GiB\"")]
    Negative(i128),
}

/// The bytes of a size such as `8GiB`, `512 MiB` or `4096`.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let trimmed = text.trim();
    let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = trimmed.split_at(digits);
    let unit = unit.trim_start();
    if number.is_empty() {
        return Err(SizeError::Unknown(text.to_owned()));
    }
    let shift = match UNITS.iter().find(|(name, _)| *name == unit) {
        Some((_, shift)) => *shift,
        None if unit.is_empty() => 0,
        None => return Err(unit_error(text, number, unit)),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(|| SizeError::TooLarge(text.to_owned()))
}

fn unit_error(text: &str, number: &str, unit: &str) -> SizeError {
    let first = unit.chars().next().map(|c| c.to_ascii_uppercase());
    let looks_like_unit = unit.len() <= 3 && unit.chars().all(|c| c.is_ascii_alphabetic());
    let near = UNITS
        .iter()
        .find(|(name, _)| first.is_some() && name.chars().next() == first);
    match near {
        Some((name, _)) if looks_like_unit => SizeError::DecimalUnit {
            found: text.to_owned(),
            instead: format!("{number}{name}"),
        },
        _ => SizeError::Unknown(text.to_owned()),
    }
}

/// A size in the largest unit that leaves a whole number, as a config takes it.
pub fn format(bytes: u64) -> String {
    for (name, shift) in UNITS.iter().rev() {
        let unit = 1u64 << shift;
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{}{name}", bytes >> shift);
        }
    }
    bytes.to_string()
}
