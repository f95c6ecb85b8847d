//! Certificates that are renewed while they are in use.
//!
//! [`Current`] is what TLS shows; [`keep`] renews it. Where new ones come from is the caller's: a CA at hand, or a
//! request to the cluster.

use std::convert::Infallible;
use std::fmt::Display;
use std::future::Future;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tracing::{info, warn};

use crate::identity::{self, Pair};

/// A certificate is renewed when between 70 and 90 % of its life are over: not all of a cluster's at once. The
/// kubelet's shares.
const LEFT: (f64, f64) = (0.1, 0.3);
/// A clock may be set while we sleep, so a longer sleep is not trusted.
const LOOK: Duration = Duration::from_secs(3600);
/// Between two renewals, and before the first that follows a failure; doubled at each failure up to the longest.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A certificate and its key that may be replaced at any time: each TLS handshake shows the newest. Clones share it.
/// The default has none: a server then refuses handshakes, a client shows nothing.
#[derive(Debug, Clone, Default)]
pub struct Current(Arc<RwLock<Option<Arc<CertifiedKey>>>>);

impl Current {
    /// # Errors
    /// As [`Current::replace`].
    pub fn new(pair: &Pair) -> Result<Self, identity::Error> {
        let current = Self::default();
        current.replace(pair)?;
        Ok(current)
    }

    /// The next handshakes show this one; open connections stay as they are.
    ///
    /// # Errors
    /// If it cannot be read, or the key is not the certificate's. What was there stays.
    pub fn replace(&self, pair: &Pair) -> Result<(), identity::Error> {
        let key = Arc::new(identity::certified(pair)?);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(key);
        Ok(())
    }

    /// Tells whether it was replaced: equal as long as it was not.
    pub fn shown(&self) -> Shown {
        Shown(self.newest())
    }

    fn newest(&self) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Which certificate [`Current`] had.
#[derive(Debug, Clone)]
pub struct Shown(Option<Arc<CertifiedKey>>);

impl PartialEq for Shown {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_ref().map(Arc::as_ptr) == other.0.as_ref().map(Arc::as_ptr)
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.newest()
    }
}

impl ResolvesClientCert for Current {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.newest()
    }

    fn has_certs(&self) -> bool {
        self.newest().is_some()
    }
}

/// Keeps `current` good for as long as it is polled: when `pair`, which is in it, nears its end (at once, if there is
/// none), `renew` makes the next. `what` names it in the log. A failure is logged and tried again.
pub async fn keep<F, E>(
    what: &str,
    current: &Current,
    mut pair: Option<Pair>,
    renew: impl Fn() -> F + Send,
) -> Infallible
where
    F: Future<Output = Result<Pair, E>> + Send,
    E: Display,
{
    let mut pause = PAUSE;
    loop {
        let left = LEFT.0 + rand::random::<f64>() * (LEFT.1 - LEFT.0);
        while let Some(wait) =
            pair.as_ref().and_then(|pair| pair.until_left(left)).filter(|wait| !wait.is_zero())
        {
            tokio::time::sleep(wait.min(LOOK)).await;
        }
        let renewed = renew().await.map_err(|error| format!("{error:#}"));
        match renewed.and_then(|new| {
            current.replace(&new).map(|()| new).map_err(|error| crate::chain(&error).to_string())
        }) {
            Ok(new) => {
                info!(certificate = what, "renewed");
                pair = Some(new);
                pause = PAUSE;
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => {
                warn!(certificate = what, error, "could not renew");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::identity::Ca;

    #[tokio::test(start_paused = true)]
    async fn what_is_missing_or_near_its_end_is_renewed_until_it_succeeds_and_what_is_new_stays() {
        let ca = Ca::generate("test-ca").unwrap();
        let current = Current::default();
        assert!(!current.has_certs());
        let (sender, mut made) = tokio::sync::watch::channel(0);
        // The first try fails, the next gives one that is over already, the third a good one.
        let answers = Mutex::new(vec![
            Ok(ca.client("third", &[""; 0]).unwrap()),
            Ok(ca.short("second", Duration::ZERO).unwrap()),
            Err("no answer"),
        ]);
        let renew = || {
            let answer = answers.lock().unwrap().pop().expect("a good certificate is not renewed");
            sender.send_modify(|made| *made += 1);
            std::future::ready(answer)
        };
        let keeping = keep("test", &current, None, renew);
        let watched = async {
            made.wait_for(|made| *made == 3).await.unwrap();
            tokio::time::sleep(Duration::from_secs(30 * 24 * 3600)).await;
        };
        tokio::select! { never = keeping => match never {}, () = watched => {} }
        let shown = current.newest().unwrap();
        assert_eq!(identity::peer_identity(&shown.cert[0]).unwrap().user, "third");
        // A key that is another's is refused, and what was there stays.
        let (one, other) = (ca.client("a", &[""; 0]).unwrap(), ca.client("b", &[""; 0]).unwrap());
        assert!(current.replace(&Pair { cert_pem: one.cert_pem, key_pem: other.key_pem }).is_err());
        assert!(Arc::ptr_eq(&shown, &current.newest().unwrap()));
    }
}
