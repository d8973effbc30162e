//! What all families of payloads have in common: a closed list of CloudEvents types and their data.

use serde_json::Value;

use super::ContractError;

/// One documented message type, for the schemas and for AsyncAPI.
#[derive(Debug, Clone)]
pub struct PayloadDoc {
    /// The CloudEvents `type`.
    pub type_name: &'static str,
    /// The first paragraph of the data type's description is in its schema; this is its name.
    pub name: &'static str,
    /// JSON Schema of `data`.
    pub schema: fn() -> schemars::Schema,
}

/// A family of payloads: each variant has a CloudEvents `type` and a data structure.
pub trait Payload: Sized {
    /// Every type of the family.
    fn docs() -> Vec<PayloadDoc>;
    /// The CloudEvents `type` of this payload.
    fn type_name(&self) -> &'static str;
    /// The CloudEvents `data` of this payload.
    fn to_data(&self) -> Value;
    /// Reads a payload back; unknown types and malformed data are two different errors.
    fn from_data(type_name: &str, data: Value) -> Result<Self, ContractError>;
}

/// Defines an enum of payloads and its [`Payload`] implementation.
macro_rules! payloads {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $type_name:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq)]
        #[allow(clippy::large_enum_variant, reason = "payloads are read once and consumed; a box would buy nothing")]
        pub enum $name { $(#[doc = concat!("`", $type_name, "`")] $variant($variant)),+ }

        impl $crate::messages::Payload for $name {
            fn docs() -> Vec<$crate::messages::PayloadDoc> {
                vec![$($crate::messages::PayloadDoc {
                    type_name: $type_name,
                    name: stringify!($variant),
                    schema: || schemars::schema_for!($variant),
                }),+]
            }

            fn type_name(&self) -> &'static str {
                match self { $($name::$variant(_) => $type_name),+ }
            }

            fn to_data(&self) -> serde_json::Value {
                match self { $($name::$variant(data) => serde_json::to_value(data)),+ }
                    .expect("payloads have text keys only")
            }

            fn from_data(
                type_name: &str,
                data: serde_json::Value,
            ) -> Result<Self, $crate::messages::ContractError> {
                let malformed = |error: serde_json::Error| $crate::messages::ContractError::MalformedData {
                    type_name: type_name.to_owned(),
                    reason: error.to_string(),
                };
                match type_name {
                    $($type_name => serde_json::from_value(data).map($name::$variant).map_err(malformed),)+
                    _ => Err($crate::messages::ContractError::UnknownType { type_name: type_name.to_owned() }),
                }
            }
        }

        $(impl From<$variant> for $name {
            fn from(data: $variant) -> Self { $name::$variant(data) }
        })+
    };
}

pub(super) use payloads;
