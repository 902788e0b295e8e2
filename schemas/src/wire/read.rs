//! MessagePack straight from a slice: the plain cases of what rmp-serde reads, half as fast again (ADR 0042).
//!
//! Replaying a journal is mostly decoding. What this reader takes, it reads as rmp-serde does; all else
//! it turns down without a word ([`NotPlain`]), and [`decode`](super::decode) asks rmp-serde, which
//! either reads it or says what is wrong. Nothing is copied here; nesting is bounded.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, Visitor, value::BorrowedBytesDeserializer};

/// Deepest nesting that is read here: events nest four deep.
const DEPTH_MAX: u8 = 16;

/// Not one of the plain cases.
#[derive(Debug)]
pub(super) struct NotPlain;

impl fmt::Display for NotPlain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a plain case")
    }
}

impl std::error::Error for NotPlain {}

impl de::Error for NotPlain {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }

    // the provided ones write texts that nobody would see
    fn invalid_type(_: de::Unexpected<'_>, _: &dyn de::Expected) -> Self {
        Self
    }

    fn missing_field(_: &'static str) -> Self {
        Self
    }
}

type Read<T> = Result<T, NotPlain>;

/// What is left to read.
pub(super) struct Reader<'de> {
    rest: &'de [u8],
    depth: u8,
    /// How much was left at the first value that was skipped.
    skipped: Option<usize>,
}

impl<'de> Reader<'de> {
    pub(super) fn new(bytes: &'de [u8]) -> Self {
        Self {
            rest: bytes,
            depth: 0,
            skipped: None,
        }
    }

    /// How many bytes were left at the first value that was skipped, if any was.
    pub(super) fn skipped(&self) -> Option<usize> {
        self.skipped
    }

    /// The names on the way to the value that begins where so many bytes are left.
    #[cold]
    pub(super) fn path_to(&mut self, left: usize) -> Option<String> {
        match *self.rest.first()? {
            0x80..=0x8f | 0xde | 0xdf => {
                let fields = self.map_length().ok()?;
                self.nested(|reader| Ok((0..fields).find_map(|_| reader.path_in_field(left))))
                    .ok()?
            }
            0x90..=0x9f | 0xdc | 0xdd => {
                let items = self.array_length().ok()?;
                self.nested(|reader| Ok((0..items).find_map(|_| reader.path_to(left))))
                    .ok()?
            }
            _ => self.skip().ok().and(None),
        }
    }

    fn path_in_field(&mut self, left: usize) -> Option<String> {
        let name = match self.text() {
            Ok(name) => name,
            // a key that is no name
            Err(NotPlain) => self.skip().ok().map(|()| "?")?,
        };
        if self.rest.len() == left {
            return Some(name.to_owned());
        }
        let inner = self.path_to(left)?;
        Some(format!("{name}.{inner}"))
    }

    /// Whether everything has been read.
    pub(super) fn is_done(&self) -> bool {
        self.rest.is_empty()
    }

    #[inline(always)]
    fn byte(&mut self) -> Read<u8> {
        let (first, rest) = self.rest.split_first().ok_or(NotPlain)?;
        self.rest = rest;
        Ok(*first)
    }

    #[inline(always)]
    fn slice(&mut self, length: usize) -> Read<&'de [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(NotPlain)?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline(always)]
    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(NotPlain)?;
        self.rest = rest;
        Ok(*taken)
    }

    /// A length of one, two or four bytes.
    #[inline(always)]
    fn length(&mut self, bytes: u8) -> Read<usize> {
        Ok(match bytes {
            1 => self.byte()?.into(),
            2 => u16::from_be_bytes(self.array()?).into(),
            _ => u32::from_be_bytes(self.array()?) as usize,
        })
    }

    #[inline(always)]
    fn text_bytes(&mut self) -> Read<&'de [u8]> {
        let marker = self.byte()?;
        let length = match marker {
            0xa0..=0xbf => usize::from(marker & 0x1f),
            0xd9..=0xdb => self.length(1 << (marker - 0xd9))?,
            _ => return Err(NotPlain),
        };
        self.slice(length)
    }

    #[inline(always)]
    fn text(&mut self) -> Read<&'de str> {
        std::str::from_utf8(self.text_bytes()?).map_err(|_| NotPlain)
    }

    #[inline(always)]
    fn binary(&mut self) -> Read<&'de [u8]> {
        let marker = self.byte()?;
        let length = match marker {
            0xc4..=0xc6 => self.length(1 << (marker - 0xc4))?,
            _ => return Err(NotPlain),
        };
        self.slice(length)
    }

    #[inline(always)]
    fn array_length(&mut self) -> Read<usize> {
        let marker = self.byte()?;
        match marker {
            0x90..=0x9f => Ok((marker & 0x0f).into()),
            0xdc | 0xdd => self.length(2 << (marker - 0xdc)),
            _ => Err(NotPlain),
        }
    }

    #[inline(always)]
    fn map_length(&mut self) -> Read<usize> {
        let marker = self.byte()?;
        match marker {
            0x80..=0x8f => Ok((marker & 0x0f).into()),
            0xde | 0xdf => self.length(2 << (marker - 0xde)),
            _ => Err(NotPlain),
        }
    }

    #[inline(always)]
    fn number<V: Visitor<'de>>(&mut self, visitor: V) -> Read<V::Value> {
        match self.byte()? {
            small @ 0x00..=0x7f => visitor.visit_u64(small.into()),
            0xcc => visitor.visit_u64(self.byte()?.into()),
            0xcd => visitor.visit_u64(u16::from_be_bytes(self.array()?).into()),
            0xce => visitor.visit_u64(u32::from_be_bytes(self.array()?).into()),
            0xcf => visitor.visit_u64(u64::from_be_bytes(self.array()?)),
            0xd0 => visitor.visit_i64(i8::from_be_bytes(self.array()?).into()),
            0xd1 => visitor.visit_i64(i16::from_be_bytes(self.array()?).into()),
            0xd2 => visitor.visit_i64(i32::from_be_bytes(self.array()?).into()),
            0xd3 => visitor.visit_i64(i64::from_be_bytes(self.array()?)),
            small @ 0xe0..=0xff => visitor.visit_i64(i8::from_be_bytes([small]).into()),
            _ => Err(NotPlain),
        }
    }

    fn skip(&mut self) -> Read<()> {
        let marker = *self.rest.first().ok_or(NotPlain)?;
        let items = match marker {
            0x00..=0x7f | 0xc0 | 0xc2 | 0xc3 | 0xe0..=0xff => return self.slice(1).map(drop),
            0xa0..=0xbf | 0xd9..=0xdb => return self.text_bytes().map(drop),
            0xc4..=0xc6 => return self.binary().map(drop),
            0xcc..=0xcf => return self.slice(1 + (1 << (marker - 0xcc))).map(drop),
            0xd0..=0xd3 => return self.slice(1 + (1 << (marker - 0xd0))).map(drop),
            0x80..=0x8f | 0xde | 0xdf => 2 * self.map_length()?,
            0x90..=0x9f | 0xdc | 0xdd => self.array_length()?,
            _ => return Err(NotPlain),
        };
        self.nested(|reader| (0..items).try_for_each(|_| reader.skip()))
    }

    #[inline(always)]
    fn nested<T>(&mut self, read: impl FnOnce(&mut Self) -> Read<T>) -> Read<T> {
        if self.depth == DEPTH_MAX {
            return Err(NotPlain);
        }
        self.depth += 1;
        let value = read(self);
        self.depth -= 1;
        value
    }

    #[inline(always)]
    fn list<V: Visitor<'de>>(&mut self, visitor: V) -> Read<V::Value> {
        let left = self.array_length()?;
        self.nested(|reader| {
            let mut items = Items { reader, left };
            let value = visitor.visit_seq(&mut items)?;
            if items.left == 0 {
                Ok(value)
            } else {
                Err(NotPlain)
            }
        })
    }

    #[inline(always)]
    fn fields<V: Visitor<'de>>(&mut self, visitor: V) -> Read<V::Value> {
        let left = self.map_length()?;
        self.nested(|reader| {
            let mut items = Items { reader, left };
            let value = visitor.visit_map(&mut items)?;
            if items.left == 0 {
                Ok(value)
            } else {
                Err(NotPlain)
            }
        })
    }
}

macro_rules! numbers {
    ($($name:ident)*) => {
        $(#[inline(always)]
        fn $name<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
            self.number(visitor)
        })*
    };
}

impl<'de> Deserializer<'de> for &mut Reader<'de> {
    type Error = NotPlain;

    numbers! {
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
    }

    fn is_human_readable(&self) -> bool {
        false
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        match *self.rest.first().ok_or(NotPlain)? {
            0xc0 => {
                self.byte()?;
                visitor.visit_unit()
            }
            0xc2 | 0xc3 => self.deserialize_bool(visitor),
            0xa0..=0xbf | 0xd9..=0xdb => self.deserialize_str(visitor),
            0xc4..=0xc6 => visitor.visit_borrowed_bytes(self.binary()?),
            0x90..=0x9f | 0xdc | 0xdd => self.list(visitor),
            0x80..=0x8f | 0xde | 0xdf => self.fields(visitor),
            _ => self.number(visitor),
        }
    }

    #[inline(always)]
    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        match self.byte()? {
            0xc2 => visitor.visit_bool(false),
            0xc3 => visitor.visit_bool(true),
            _ => Err(NotPlain),
        }
    }

    #[inline(always)]
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        visitor.visit_borrowed_str(self.text()?)
    }

    #[inline(always)]
    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        self.deserialize_str(visitor)
    }

    /// Names of fields are compared as bytes: only a name that is known can match.
    #[inline(always)]
    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        visitor.visit_borrowed_bytes(self.text_bytes()?)
    }

    #[inline(always)]
    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        visitor.visit_borrowed_bytes(self.binary()?)
    }

    #[inline(always)]
    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        self.deserialize_bytes(visitor)
    }

    #[inline(always)]
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        if self.rest.first() == Some(&0xc0) {
            self.byte()?;
            return visitor.visit_none();
        }
        visitor.visit_some(self)
    }

    #[inline(always)]
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Read<V::Value> {
        if name == rmp_serde::MSGPACK_EXT_STRUCT_NAME {
            return Err(NotPlain);
        }
        visitor.visit_newtype_struct(self)
    }

    #[inline(always)]
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        self.list(visitor)
    }

    #[inline(always)]
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        self.fields(visitor)
    }

    #[inline(always)]
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Read<V::Value> {
        self.fields(visitor)
    }

    /// Variants without content only.
    #[inline(always)]
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Read<V::Value> {
        visitor.visit_enum(Name(self.text_bytes()?))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        self.skipped = self.skipped.or(Some(self.rest.len()));
        self.skip()?;
        visitor.visit_unit()
    }

    fn deserialize_f32<V: Visitor<'de>>(self, _: V) -> Read<V::Value> {
        Err(NotPlain)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, _: V) -> Read<V::Value> {
        Err(NotPlain)
    }

    fn deserialize_char<V: Visitor<'de>>(self, _: V) -> Read<V::Value> {
        Err(NotPlain)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, _: V) -> Read<V::Value> {
        Err(NotPlain)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, _: V) -> Read<V::Value> {
        Err(NotPlain)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Read<V::Value> {
        self.list(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Read<V::Value> {
        self.list(visitor)
    }
}

/// What is left of an array or a map.
struct Items<'a, 'de> {
    reader: &'a mut Reader<'de>,
    left: usize,
}

impl<'de> de::SeqAccess<'de> for Items<'_, 'de> {
    type Error = NotPlain;

    #[inline(always)]
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Read<Option<T::Value>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        seed.deserialize(&mut *self.reader).map(Some)
    }

    /// Never more than the bytes at hand can hold, whatever the header says.
    fn size_hint(&self) -> Option<usize> {
        Some(self.left.min(self.reader.rest.len()))
    }
}

impl<'de> de::MapAccess<'de> for Items<'_, 'de> {
    type Error = NotPlain;

    #[inline(always)]
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Read<Option<K::Value>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        seed.deserialize(&mut *self.reader).map(Some)
    }

    #[inline(always)]
    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Read<T::Value> {
        seed.deserialize(&mut *self.reader)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left.min(self.reader.rest.len()))
    }
}

/// The name of a variant without content.
struct Name<'de>(&'de [u8]);

impl<'de> de::EnumAccess<'de> for Name<'de> {
    type Error = NotPlain;
    type Variant = Self;

    #[inline(always)]
    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Read<(T::Value, Self)> {
        let variant = seed.deserialize(BorrowedBytesDeserializer::new(self.0))?;
        Ok((variant, self))
    }
}

impl<'de> de::VariantAccess<'de> for Name<'de> {
    type Error = NotPlain;

    #[inline(always)]
    fn unit_variant(self) -> Read<()> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Read<T::Value> {
        Err(NotPlain)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Read<V::Value> {
        Err(NotPlain)
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Read<V::Value> {
        Err(NotPlain)
    }
}
