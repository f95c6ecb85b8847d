//! The wire form itself: numbered fields, read forwards and written backwards.

use bytes::Bytes;

use super::Error;

/// What a field carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// Four or eight bytes, or a group: no field of Kubernetes' is one, so they are only passed over.
    Other,
}

/// A message's fields in the order in which they come. After an error it ends.
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub fn of(message: &'a [u8]) -> Self {
        Self(message)
    }

    fn next_field(&mut self) -> Result<(u32, Payload<'a>), Error> {
        let (number, wire_type) = self.tag()?;
        Ok((number, self.payload(wire_type)?))
    }

    fn tag(&mut self) -> Result<(u32, u8), Error> {
        let tag = varint(&mut self.0)?;
        match u32::try_from(tag >> 3) {
            Ok(number) if number > 0 => Ok((number, (tag & 7) as u8)),
            _ => Err(Error::Tag(tag)),
        }
    }

    fn payload(&mut self, wire_type: u8) -> Result<Payload<'a>, Error> {
        match wire_type {
            0 => varint(&mut self.0).map(Payload::Varint),
            1 => self.take(8).map(|_| Payload::Other),
            2 => {
                let length = usize::try_from(varint(&mut self.0)?).map_err(|_| Error::Cut)?;
                self.take(length).map(Payload::Bytes)
            }
            3 => self.skip_group().map(|()| Payload::Other),
            4 => Err(Error::Group),
            5 => self.take(4).map(|_| Payload::Other),
            other => Err(Error::IllegalType(other)),
        }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Error::Cut)?;
        self.0 = rest;
        Ok(taken)
    }

    /// Passes over a group whose start was read; groups in it are counted, not recursed into.
    fn skip_group(&mut self) -> Result<(), Error> {
        let mut open = 1usize;
        while open > 0 {
            match self.tag()?.1 {
                3 => open += 1,
                4 => open -= 1,
                wire_type => {
                    self.payload(wire_type)?;
                }
            }
        }
        Ok(())
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Payload<'a>), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.next_field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

/// A number of up to ten bytes, the lowest seven bits first.
pub fn varint(bytes: &mut &[u8]) -> Result<u64, Error> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or(Error::Cut)?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Error::Overflow)
}

/// Writes a message from its end to its start, so that the length of what is nested is known when it is to be
/// written: fields go in from the last to the first.
#[derive(Default)]
pub struct Writer {
    /// The message's bytes, the last one first.
    out: Vec<u8>,
}

impl Writer {
    pub fn len(&self) -> usize {
        self.out.len()
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.out.extend(bytes.iter().rev());
    }

    fn number(&mut self, mut value: u64) {
        let (mut bytes, mut length) = ([0; 10], 0);
        loop {
            let more = value >= 0x80;
            bytes[length] = (value & 0x7f) as u8 | if more { 0x80 } else { 0 };
            length += 1;
            value >>= 7;
            if !more {
                break;
            }
        }
        self.raw(&bytes[..length]);
    }

    fn tag(&mut self, number: u32, wire_type: u8) {
        self.number(u64::from(number) << 3 | u64::from(wire_type));
    }

    pub fn varint(&mut self, number: u32, value: u64) {
        self.number(value);
        self.tag(number, 0);
    }

    pub fn bytes(&mut self, number: u32, bytes: &[u8]) {
        self.raw(bytes);
        self.length(number, bytes.len());
    }

    /// A field's head, before its content of `length` bytes.
    pub fn length(&mut self, number: u32, length: usize) {
        self.number(length as u64);
        self.tag(number, 2);
    }

    /// A field that is a message.
    pub fn nested(&mut self, number: u32, write: impl FnOnce(&mut Self)) {
        let before = self.out.len();
        write(self);
        self.length(number, self.out.len() - before);
    }

    pub fn finish(mut self) -> Bytes {
        self.out.reverse();
        self.out.into()
    }
}
