//! Reading an archive: decompression told from its first bytes, everything counted, hashed and bounded.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;

use super::{Cancel, Fault};
use crate::digest::{Digest, Hasher};

/// Opens the right decompressor. The media type is not asked: registries and builders get it wrong, the first bytes cannot.
pub(crate) fn decompress(file: File) -> io::Result<Box<dyn Read>> {
    let mut reader = BufReader::with_capacity(128 << 10, file);
    let head = reader.fill_buf()?;
    Ok(match head {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::Decoder::with_buffer(reader)?),
        _ => Box::new(reader),
    })
}

/// What a [`Tee`] counts and why it stopped, readable while the archive reader owns it.
#[derive(Default)]
pub(crate) struct Gauge {
    /// Bytes that may still be read for headers; `None` while file content is read.
    headers: Cell<Option<u64>>,
    stopped: RefCell<Option<Fault>>,
}

const HEADERS: u64 = 1 << 20; // of one entry: a long name, a long link and extended attributes of 64 KiB each fit well

impl Gauge {
    /// The next reads are for the headers of one entry.
    pub(crate) fn expect_headers(&self) {
        self.headers.set(Some(HEADERS));
    }

    /// The next reads are for its content.
    pub(crate) fn expect_content(&self) {
        self.headers.set(None);
    }

    /// Says why reading failed: our own reason if we stopped it, else what is wrong with the archive.
    pub(crate) fn fault(&self, what: &str, error: &io::Error) -> Fault {
        if let Some(fault) = self.stopped.borrow_mut().take() {
            return fault;
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Fault::Bad(format!("the archive ends early ({what})")),
            _ => Fault::Bad(format!("the archive is damaged ({what}: {error})")),
        }
    }
}

/// Passes an archive through while hashing it, and stops it at its bounds.
pub(crate) struct Tee {
    inner: Box<dyn Read>,
    hasher: Hasher,
    left: u64,
    limit: u64,
    cancel: Cancel,
    gauge: Rc<Gauge>,
}

impl Tee {
    pub(crate) fn new(inner: Box<dyn Read>, limit: u64, cancel: Cancel, gauge: Rc<Gauge>) -> Self {
        Self { inner, hasher: Hasher::default(), left: limit, limit, cancel, gauge }
    }

    /// Reads to the end; what follows the archive's end mark belongs to its digest too.
    pub(crate) fn finish(mut self) -> Result<Digest, Fault> {
        self.gauge.expect_content();
        let mut buffer = vec![0; 64 << 10];
        loop {
            match self.read(&mut buffer) {
                Ok(0) => return Ok(self.hasher.finish()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.gauge.fault("after the last entry", &error)),
            }
        }
    }

    fn stop(&self, fault: Fault) -> io::Error {
        let error = io::Error::other(fault.to_string());
        *self.gauge.stopped.borrow_mut() = Some(fault);
        error
    }
}

impl Read for Tee {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(self.stop(Fault::Cancelled));
        }
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        let Some(left) = self.left.checked_sub(n as u64) else {
            return Err(self.stop(Fault::Bad(format!("unpacks to more than {} bytes", self.limit))));
        };
        self.left = left;
        if let Some(headers) = self.gauge.headers.get() {
            let Some(headers) = headers.checked_sub(n as u64) else {
                return Err(self
                    .stop(Fault::Bad(format!("the headers of one entry are larger than {HEADERS} bytes"))));
            };
            self.gauge.headers.set(Some(headers));
        }
        Ok(n)
    }
}
