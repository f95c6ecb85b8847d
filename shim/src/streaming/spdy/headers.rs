//! SPDY/3's header blocks: names and values with lengths, in one zlib stream a direction, with a given dictionary.
//! (draft-mbelshe-httpbis-spdy-00, 2.6.10.)

use std::collections::HashMap;
use std::sync::LazyLock;

use zlib_rs::{Deflate, DeflateFlush, Inflate, InflateError, InflateFlush, Status};

use super::Error;

/// A block is at most this long; names and values of Kubernetes' streams take some 100 bytes.
const MOST: usize = 16 << 10;

pub type Headers = HashMap<String, String>;

/// The words that have their length before them, then the text that has none (2.6.10.1).
static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let words = "options head post put delete trace accept accept-charset accept-encoding accept-language \
        accept-ranges age allow authorization cache-control connection content-base content-encoding \
        content-language content-length content-location content-md5 content-range content-type date etag \
        expect expires from host if-match if-modified-since if-none-match if-range if-unmodified-since \
        last-modified location max-forwards pragma proxy-authenticate proxy-authorization range referer \
        retry-after server te trailer transfer-encoding upgrade user-agent vary via warning \
        www-authenticate method get status";
    let more = ["200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie", "keep-alive", "origin"];
    let text = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 \
        Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 \
        Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb \
        Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,\
        text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,\
        text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";
    let mut bytes = Vec::new();
    for word in words.split_ascii_whitespace().chain(more) {
        bytes.extend((word.len() as u32).to_be_bytes());
        bytes.extend(word.as_bytes());
    }
    bytes.extend(text.as_bytes());
    bytes
});

/// Reads the blocks of one direction, in their order.
pub struct Decoder(Inflate);

impl Decoder {
    pub fn new() -> Self {
        Self(Inflate::new(true, 15))
    }

    /// # Errors
    /// [`Error::Headers`]; the connection is of no use then, as the state is lost.
    pub fn decode(&mut self, block: &[u8]) -> Result<Headers, Error> {
        let bytes = self.inflate(block)?;
        let mut rest = bytes.as_slice();
        let count = number(&mut rest)?;
        let mut headers = Headers::new();
        for _ in 0..count {
            // Each takes 8 bytes at least, so a count that lies ends with what there is.
            let (name, value) = (text(&mut rest)?, text(&mut rest)?);
            headers.insert(name.to_ascii_lowercase(), value);
        }
        Ok(headers)
    }

    fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>, Error> {
        let mut out = vec![0; MOST];
        let mut filled = 0;
        loop {
            let before = (self.0.total_in(), self.0.total_out());
            let step = self.0.decompress(block, &mut out[filled..], InflateFlush::SyncFlush);
            block = &block[(self.0.total_in() - before.0) as usize..];
            filled += (self.0.total_out() - before.1) as usize;
            match step {
                Err(InflateError::NeedDict { .. }) => {
                    self.0.set_dictionary(&DICTIONARY).map_err(|_| Error::Headers("another dictionary"))?;
                }
                Err(_) | Ok(Status::StreamEnd) => return Err(Error::Headers("no zlib stream")),
                Ok(_) if filled == MOST => return Err(Error::Headers("too long")),
                Ok(_) if block.is_empty() => break,
                Ok(_) if before == (self.0.total_in(), self.0.total_out()) => {
                    return Err(Error::Headers("no progress"));
                }
                Ok(_) => {}
            }
        }
        out.truncate(filled);
        Ok(out)
    }
}

fn number(rest: &mut &[u8]) -> Result<usize, Error> {
    let (bytes, after) = rest.split_first_chunk::<4>().ok_or(Error::Headers("cut short"))?;
    *rest = after;
    Ok(u32::from_be_bytes(*bytes) as usize)
}

fn text(rest: &mut &[u8]) -> Result<String, Error> {
    let length = number(rest)?;
    let (bytes, after) = rest.split_at_checked(length).ok_or(Error::Headers("cut short"))?;
    *rest = after;
    String::from_utf8(bytes.to_vec()).map_err(|_| Error::Headers("not UTF-8"))
}

/// Writes the blocks of one direction.
pub struct Encoder(Deflate);

impl Encoder {
    pub fn new() -> Self {
        let mut deflate = Deflate::new(1, true, 15);
        deflate.set_dictionary(&DICTIONARY).expect("a fresh stream takes a dictionary");
        Self(deflate)
    }

    pub fn encode(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut plain = Vec::from((headers.len() as u32).to_be_bytes());
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend((text.len() as u32).to_be_bytes());
            plain.extend(text.as_bytes());
        }
        // Room for what cannot be compressed, and for the flush.
        let mut out = vec![0; plain.len() + 256];
        let before = self.0.total_out();
        let done = self.0.compress(&plain, &mut out, DeflateFlush::SyncFlush);
        done.expect("there is room for all of it");
        out.truncate((self.0.total_out() - before) as usize);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_read_as_they_were_written_one_after_the_other() {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
        for n in 0..50 {
            let id = n.to_string();
            let pairs = [("streamtype", "stdin"), ("requestid", &id), ("host", "")];
            let block = encoder.encode(&pairs);
            let headers = decoder.decode(&block).expect("it is ours");
            assert_eq!(headers.len(), 3);
            assert_eq!(
                (headers["streamtype"].as_str(), headers["requestid"].as_str()),
                ("stdin", id.as_str())
            );
        }
        assert!(decoder.decode(&encoder.encode(&[])).expect("none").is_empty());
        // The dictionary's checksum, which other implementations ask for by these bytes.
        assert_eq!(Encoder::new().encode(&[])[..6], [0x78, 0x3f, 0xe3, 0xc6, 0xa7, 0xc2]);
    }

    #[test]
    fn bombs_and_lies_are_errors() {
        let bomb = "0".repeat(1 << 20);
        let block = Encoder::new().encode(&[("a", &bomb)]);
        assert!(block.len() < 16 << 10, "{} bytes do not show it", block.len());
        assert!(matches!(Decoder::new().decode(&block), Err(Error::Headers("too long"))));
        for garbage in [&b"garbage"[..], b"", &[0x78, 0xbb, 0, 0, 0, 1, 2, 3], &[0xff; 64]] {
            assert!(Decoder::new().decode(garbage).is_err(), "{garbage:?}");
        }
        let mut raw = Deflate::new(1, true, 15);
        let mut out = vec![0; 256];
        raw.compress(&[0xff, 0xff, 0xff, 0xff, 0, 0], &mut out, DeflateFlush::SyncFlush).expect("it fits");
        out.truncate(raw.total_out() as usize);
        assert!(matches!(Decoder::new().decode(&out), Err(Error::Headers("cut short"))), "a count that lies");
    }
}
