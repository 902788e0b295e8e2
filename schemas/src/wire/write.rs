//! MessagePack straight into a buffer: what rmp-serde writes with named fields, three times as fast (ADR 0042).
//!
//! Every decision is encoded once when it is taken and once more when it is audited. What this writer
//! takes, it writes to the same bytes as rmp-serde; the rest it turns down ([`NotPlain`]), and
//! [`encode`](super::encode) leaves it to rmp-serde.

use serde::ser::{self, Impossible, Serialize, Serializer};

use super::read::NotPlain;

impl ser::Error for NotPlain {
    fn custom<T: std::fmt::Display>(_: T) -> Self {
        Self
    }
}

type Written = Result<(), NotPlain>;

/// Writes behind what the buffer holds.
pub(super) struct Writer<'a>(pub(super) &'a mut Vec<u8>);

impl Writer<'_> {
    #[inline]
    fn unsigned(&mut self, value: u64) {
        match value {
            0..=0x7f => self.0.push(value.to_be_bytes()[7]),
            0x80..=0xff => self.0.extend([0xcc, value.to_be_bytes()[7]]),
            0x100..=0xffff => self.marked::<3>(0xcd, value),
            0x1_0000..=0xffff_ffff => self.marked::<5>(0xce, value),
            _ => self.marked::<9>(0xcf, value),
        }
    }

    /// A marker and the low bytes of a number.
    #[inline]
    fn marked<const N: usize>(&mut self, marker: u8, value: u64) {
        let mut bytes = [0; 9];
        bytes[1..].copy_from_slice(&value.to_be_bytes());
        bytes[9 - N] = marker;
        self.0.extend_from_slice(&bytes[9 - N..]);
    }

    /// Always in line: the names of fields are known when this is compiled, and so are their lengths.
    #[inline(always)]
    fn text(&mut self, text: &str) -> Written {
        match text.len() {
            length @ 0..=31 => self.0.push(0xa0 | length.to_be_bytes()[7]),
            length @ 32..=0xff => self.0.extend([0xd9, length.to_be_bytes()[7]]),
            length @ 0x100..=0xffff => self.marked::<3>(0xda, length as u64),
            _ => return Err(NotPlain),
        }
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }

    #[inline]
    fn map(&mut self, length: usize) -> Written {
        match length {
            0..=15 => self.0.push(0x80 | length.to_be_bytes()[7]),
            16..=0xffff => self.marked::<3>(0xde, length as u64),
            _ => return Err(NotPlain),
        }
        Ok(())
    }

    #[inline]
    fn list(&mut self, length: usize) -> Written {
        match length {
            0..=15 => self.0.push(0x90 | length.to_be_bytes()[7]),
            16..=0xffff => self.marked::<3>(0xdc, length as u64),
            _ => return Err(NotPlain),
        }
        Ok(())
    }
}

macro_rules! unsigned {
    ($($name:ident: $type:ty)*) => {
        $(#[inline]
        fn $name(self, value: $type) -> Written {
            self.unsigned(value.into());
            Ok(())
        })*
    };
}

macro_rules! turned_down {
    ($($name:ident: $type:ty)*) => {
        $(fn $name(self, _: $type) -> Written {
            Err(NotPlain)
        })*
    };
}

impl<'a> Serializer for &mut Writer<'a> {
    type Ok = ();
    type Error = NotPlain;
    type SerializeSeq = Self;
    type SerializeTuple = Impossible<(), NotPlain>;
    type SerializeTupleStruct = Impossible<(), NotPlain>;
    type SerializeTupleVariant = Impossible<(), NotPlain>;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Impossible<(), NotPlain>;

    unsigned! { serialize_u8: u8 serialize_u16: u16 serialize_u32: u32 serialize_u64: u64 }
    turned_down! { serialize_f32: f32 serialize_f64: f64 serialize_char: char }

    fn is_human_readable(&self) -> bool {
        false
    }

    #[inline]
    fn serialize_bool(self, value: bool) -> Written {
        self.0.push(if value { 0xc3 } else { 0xc2 });
        Ok(())
    }

    fn serialize_i8(self, value: i8) -> Written {
        self.serialize_i64(value.into())
    }

    fn serialize_i16(self, value: i16) -> Written {
        self.serialize_i64(value.into())
    }

    fn serialize_i32(self, value: i32) -> Written {
        self.serialize_i64(value.into())
    }

    fn serialize_i64(self, value: i64) -> Written {
        let bits = u64::from_be_bytes(value.to_be_bytes());
        match value {
            0.. => self.unsigned(bits),
            -32..0 => self.0.push(bits.to_be_bytes()[7]),
            -0x80..-32 => self.marked::<2>(0xd0, bits),
            -0x8000..-0x80 => self.marked::<3>(0xd1, bits),
            -0x8000_0000..-0x8000 => self.marked::<5>(0xd2, bits),
            _ => self.marked::<9>(0xd3, bits),
        }
        Ok(())
    }

    #[inline]
    fn serialize_str(self, text: &str) -> Written {
        self.text(text)
    }

    #[inline]
    fn serialize_bytes(self, bytes: &[u8]) -> Written {
        match bytes.len() {
            length @ 0..=0xff => self.0.extend([0xc4, length.to_be_bytes()[7]]),
            length @ 0x100..=0xffff => self.marked::<3>(0xc5, length as u64),
            _ => return Err(NotPlain),
        }
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    #[inline]
    fn serialize_none(self) -> Written {
        self.0.push(0xc0);
        Ok(())
    }

    #[inline]
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Written {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Written {
        self.serialize_none()
    }

    fn serialize_unit_struct(self, _: &'static str) -> Written {
        Err(NotPlain)
    }

    #[inline]
    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Written {
        self.text(variant)
    }

    #[inline]
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Written {
        if name == rmp_serde::MSGPACK_EXT_STRUCT_NAME {
            return Err(NotPlain);
        }
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Written {
        Err(NotPlain)
    }

    #[inline]
    fn serialize_seq(self, length: Option<usize>) -> Result<Self, NotPlain> {
        self.list(length.ok_or(NotPlain)?)?;
        Ok(self)
    }

    fn serialize_tuple(self, _: usize) -> Result<Self::SerializeTuple, NotPlain> {
        Err(NotPlain)
    }

    fn serialize_tuple_struct(
        self,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleStruct, NotPlain> {
        Err(NotPlain)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, NotPlain> {
        Err(NotPlain)
    }

    fn serialize_map(self, length: Option<usize>) -> Result<Self, NotPlain> {
        self.map(length.ok_or(NotPlain)?)?;
        Ok(self)
    }

    #[inline]
    fn serialize_struct(self, _: &'static str, length: usize) -> Result<Self, NotPlain> {
        self.map(length)?;
        Ok(self)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, NotPlain> {
        Err(NotPlain)
    }
}

impl ser::SerializeSeq for &mut Writer<'_> {
    type Ok = ();
    type Error = NotPlain;

    #[inline]
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Written {
        value.serialize(&mut **self)
    }

    #[inline]
    fn end(self) -> Written {
        Ok(())
    }
}

impl ser::SerializeMap for &mut Writer<'_> {
    type Ok = ();
    type Error = NotPlain;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Written {
        key.serialize(&mut **self)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Written {
        value.serialize(&mut **self)
    }

    fn end(self) -> Written {
        Ok(())
    }
}

impl ser::SerializeStruct for &mut Writer<'_> {
    type Ok = ();
    type Error = NotPlain;

    #[inline]
    fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Written {
        self.text(name)?;
        value.serialize(&mut **self)
    }

    #[inline]
    fn end(self) -> Written {
        Ok(())
    }
}
