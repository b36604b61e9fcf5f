//! Amounts of cpu and bytes, as people write them (`250m`, `64Mi`) and as integers inside.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A share of processors in thousandths of a core: `250m` is a quarter, `2` is two whole cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MilliCpu(pub u64);

/// An amount of a named resource in thousandths: `2` is two whole devices, `500m` or `0.5` half of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Milli(pub u64);

/// A number of bytes: `64Mi` (binary: Ki Mi Gi Ti), `64M` (decimal: k M G T), or a plain number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes(pub u64);

/// Why a text is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an amount of {what}: expected {expected}")]
pub struct InvalidQuantity {
    what: &'static str,
    text: String,
    expected: &'static str,
}

const CPU_EXPECTED: &str = "cores such as `2` or `0.5`, or thousandths such as `250m`";
const MILLI_EXPECTED: &str = "a number such as `2` or `0.5`, or thousandths such as `500m`";
const BYTES_EXPECTED: &str =
    "a number with an optional suffix Ki, Mi, Gi, Ti, k, M, G or T, such as `64Mi`";
const BYTE_SUFFIXES: [(&str, u64); 8] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
];

/// Reads a decimal number times `scale` exactly; None when it has more places than `scale` can hold.
fn scaled(text: &str, scale: u64) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || text.ends_with('.') {
        return None;
    }
    let mut value = whole.parse::<u64>().ok()?.checked_mul(scale)?;
    if !fraction.is_empty() {
        let divisor = 10u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let product = fraction.parse::<u64>().ok()?.checked_mul(scale)?;
        if product % divisor != 0 {
            return None;
        }
        value = value.checked_add(product / divisor)?;
    }
    Some(value)
}

/// Reads `2`, `0.5` or `500m` as thousandths.
fn thousandths(
    text: &str,
    what: &'static str,
    expected: &'static str,
) -> Result<u64, InvalidQuantity> {
    let value = match text.strip_suffix('m') {
        Some(milli) => scaled(milli, 1),
        None => scaled(text, 1000),
    };
    value.ok_or_else(|| InvalidQuantity { what, text: text.to_owned(), expected })
}

impl FromStr for MilliCpu {
    type Err = InvalidQuantity;
    fn from_str(text: &str) -> Result<Self, InvalidQuantity> {
        thousandths(text, "cpu", CPU_EXPECTED).map(Self)
    }
}

impl FromStr for Milli {
    type Err = InvalidQuantity;
    fn from_str(text: &str) -> Result<Self, InvalidQuantity> {
        thousandths(text, "a named resource", MILLI_EXPECTED).map(Self)
    }
}

impl FromStr for Bytes {
    type Err = InvalidQuantity;
    fn from_str(text: &str) -> Result<Self, InvalidQuantity> {
        let parsed = BYTE_SUFFIXES
            .iter()
            .find_map(|(suffix, scale)| {
                text.strip_suffix(suffix).map(|number| scaled(number, *scale))
            })
            .unwrap_or_else(|| scaled(text, 1));
        parsed.map(Self).ok_or_else(|| InvalidQuantity {
            what: "bytes",
            text: text.to_owned(),
            expected: BYTES_EXPECTED,
        })
    }
}

fn pad_thousandths(milli: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if milli.is_multiple_of(1000) {
        f.pad(&(milli / 1000).to_string())
    } else {
        f.pad(&format!("{milli}m"))
    }
}

impl fmt::Display for MilliCpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        pad_thousandths(self.0, f)
    }
}

impl fmt::Display for Milli {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        pad_thousandths(self.0, f)
    }
}

impl fmt::Display for Bytes {
    /// The largest binary unit that loses nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = BYTE_SUFFIXES[..4]
            .iter()
            .rev()
            .find(|(_, scale)| self.0 != 0 && self.0.is_multiple_of(*scale));
        match exact {
            Some((suffix, scale)) => f.pad(&format!("{}{suffix}", self.0 / scale)),
            None => f.pad(&self.0.to_string()),
        }
    }
}

/// A quantity may be written as a text or as a number; both forms end here.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Whole(u64),
    Decimal(f64),
    Text(String),
}

impl Written {
    fn into_text(self) -> String {
        match self {
            Self::Whole(number) => number.to_string(),
            Self::Decimal(number) => number.to_string(),
            Self::Text(text) => text,
        }
    }
}

macro_rules! quantity_serde {
    ($name:ident, $description:expr) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let written = Written::deserialize(deserializer)
                    .map_err(|_| serde::de::Error::custom(concat!("expected ", $description)))?;
                written.into_text().parse().map_err(serde::de::Error::custom)
            }
        }
        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": ["string", "number"], "description": $description })
            }
        }
    };
}

quantity_serde!(MilliCpu, "cores such as 2 or 0.5, or thousandths such as \"250m\"");
quantity_serde!(Milli, "a number such as 2 or 0.5, or thousandths such as \"500m\"");
quantity_serde!(Bytes, "a number of bytes or a text such as \"64Mi\"");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_is_read_as_people_write_it() {
        for (text, milli) in
            [("250m", 250), ("1", 1000), ("0.5", 500), ("1.25", 1250), ("0", 0), ("16", 16_000)]
        {
            assert_eq!(text.parse(), Ok(MilliCpu(milli)), "{text}");
        }
        for bad in
            ["", "m", "1.", ".5", "-1", "1e3", "0.0001", "250M", "99999999999999999999", "1.5m"]
        {
            assert!(bad.parse::<MilliCpu>().is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("64Mi", 64 << 20),
            ("1.5Gi", 3 << 29),
            ("10k", 10_000),
            ("7", 7),
            ("2T", 2_000_000_000_000),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for bad in ["", "Mi", "64mi", "64 Mi", "-1", "1.3", "99999999Ti"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
    }

    #[test]
    fn quantities_print_what_they_parse() {
        for text in ["250m", "2", "0"] {
            assert_eq!(text.parse::<MilliCpu>().unwrap().to_string(), text);
        }
        for text in ["64Mi", "1Gi", "1025", "0", "1000"] {
            assert_eq!(text.parse::<Bytes>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn numbers_and_texts_mean_the_same() {
        assert_eq!(serde_json::from_str::<MilliCpu>("0.25").unwrap(), MilliCpu(250));
        assert_eq!(serde_json::from_str::<MilliCpu>("\"250m\"").unwrap(), MilliCpu(250));
        assert_eq!(serde_json::from_str::<Bytes>("1024").unwrap(), Bytes(1024));
        assert!(serde_json::from_str::<Bytes>("-1").is_err());
        assert!(serde_json::from_str::<MilliCpu>("{}").is_err());
    }
}
