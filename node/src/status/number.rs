//! JSON has no NaN and no infinity, and a diverged loss is just that: such values travel as text.

use serde::{Deserialize, Deserializer, Serializer};

pub(super) fn serialize<S: Serializer>(value: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    if value.is_finite() {
        serializer.serialize_f32(*value)
    } else {
        serializer.serialize_str(if value.is_nan() {
            "nan"
        } else if *value > 0.0 {
            "inf"
        } else {
            "-inf"
        })
    }
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f32, D::Error> {
    Number::deserialize(deserializer).map(Number::value)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Finite(f32),
    Other(Word),
}

#[derive(Deserialize)]
enum Word {
    #[serde(rename = "nan")]
    Nan,
    #[serde(rename = "inf")]
    Infinite,
    #[serde(rename = "-inf")]
    MinusInfinite,
}

impl Number {
    fn value(self) -> f32 {
        match self {
            Self::Finite(value) => value,
            Self::Other(Word::Nan) => f32::NAN,
            Self::Other(Word::Infinite) => f32::INFINITY,
            Self::Other(Word::MinusInfinite) => f32::NEG_INFINITY,
        }
    }
}

/// The same for a value that may be absent.
pub(super) mod option {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::Number;

    pub(in super::super) fn serialize<S: Serializer>(
        value: &Option<f32>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => super::serialize(value, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<f32>, D::Error> {
        Ok(Option::<Number>::deserialize(deserializer)?.map(Number::value))
    }
}
