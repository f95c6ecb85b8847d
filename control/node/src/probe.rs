//! Probes: what a container is asked again and again, and what is made of the answers. One task a probe, and none without
//! one.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};

use crate::ask::{self, Answer, Asked, PortError, Target, ask};

/// What a probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Startup,
    Readiness,
    Liveness,
}

impl Purpose {
    /// As events begin.
    pub fn word(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }

    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
        }
    }
}

/// A probe as it is run.
#[derive(Debug, Clone)]
pub struct Settings {
    pub target: Target,
    pub initial: Duration,
    pub period: Duration,
    pub timeout: Duration,
    pub successes: u32,
    pub failures: u32,
}

/// Reads a probe of the API, with Kubernetes' defaults.
///
/// # Errors
/// An unknown port name.
pub fn settings(probe: &Probe, container: &Container) -> Result<Settings, PortError> {
    let target = if let Some(get) = &probe.http_get {
        ask::http(get, container)?
    } else if let Some(socket) = &probe.tcp_socket {
        ask::tcp(socket, container)?
    } else if let Some(grpc) = &probe.grpc {
        ask::grpc(grpc)?
    } else {
        ask::exec(&probe.exec.clone().unwrap_or_default())
    };
    let at_least_one = |value: Option<i32>, default: u32| {
        value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0).unwrap_or(default)
    };
    let seconds =
        |value: Option<i32>, default: u32| Duration::from_secs(u64::from(at_least_one(value, default)));
    Ok(Settings {
        target,
        initial: Duration::from_secs(
            probe.initial_delay_seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0),
        ),
        period: seconds(probe.period_seconds, 10),
        timeout: seconds(probe.timeout_seconds, 1),
        successes: at_least_one(probe.success_threshold, 1),
        failures: at_least_one(probe.failure_threshold, 3),
    })
}

/// Counts answers in a row; says when the verdict turns.
#[derive(Debug, Clone)]
pub struct Threshold {
    successes: u32,
    failures: u32,
    run: u32,
    last: Option<bool>,
    verdict: Option<bool>,
}

impl Threshold {
    pub fn new(settings: &Settings) -> Self {
        Self { successes: settings.successes, failures: settings.failures, run: 0, last: None, verdict: None }
    }

    /// Notes an answer. `Some` when the verdict is a new one.
    pub fn note(&mut self, good: bool) -> Option<bool> {
        self.run = if self.last == Some(good) { self.run.saturating_add(1) } else { 1 };
        self.last = Some(good);
        let needed = if good { self.successes } else { self.failures };
        if self.run < needed || self.verdict == Some(good) {
            return None;
        }
        self.verdict = Some(good);
        Some(good)
    }
}

/// Runs until dropped. `turned` is told each new verdict, `failed` each failure in words, beginning with
/// what became of the probe.
pub async fn run<F: Future<Output = ()> + Send>(
    settings: Settings,
    purpose: Purpose,
    asked: Asked,
    turned: impl Fn(bool) -> F + Send,
    failed: impl Fn(&str) + Send,
) {
    tokio::time::sleep(settings.initial).await;
    let mut threshold = Threshold::new(&settings);
    // A server that has just been started listens a moment later. Where no delay is asked for, and for as long as nothing
    // listens at all (so that nobody can notice), ask again soon instead of a whole period later; such answers count not.
    let mut early = Duration::from_millis(5);
    let eager = settings.initial.is_zero() && purpose != Purpose::Liveness;
    let mut begun = !eager;
    loop {
        let answer = ask(&settings.target, &asked, Some(settings.timeout)).await;
        let refused = matches!(answer, Answer::Refused(_));
        if !begun && refused && early < settings.period {
            tokio::time::sleep(early).await;
            early *= 2;
            continue;
        }
        begun = true;
        let good = match answer {
            Answer::Good => true,
            Answer::Bad(words) | Answer::Refused(words) => {
                failed(&format!("failed: {words}"));
                false
            }
            Answer::Unknown(words) => {
                failed(&format!("errored and resulted in unknown state: {words}"));
                tokio::time::sleep(settings.period).await;
                continue; // it counts for nothing
            }
        };
        if let Some(verdict) = threshold.note(good) {
            turned(verdict).await;
            // A startup probe has done its work with its first verdict.
            if purpose == Purpose::Startup {
                return;
            }
        }
        tokio::time::sleep(settings.period).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn container() -> Container {
        serde_json::from_value(json!({"name": "c", "ports": [{"name": "web", "containerPort": 8081}]}))
            .unwrap()
    }

    fn read(probe: serde_json::Value) -> Result<Settings, PortError> {
        settings(&serde_json::from_value(probe).unwrap(), &container())
    }

    #[test]
    fn probes_are_read_with_kubernetes_defaults() {
        let http = read(json!({"httpGet": {"path": "ok", "port": "web"}})).unwrap();
        assert_eq!(
            http.target,
            Target::Http { tls: false, host: None, port: 8081, path: "/ok".into(), headers: vec![] }
        );
        assert_eq!(
            (http.period.as_secs(), http.timeout.as_secs(), http.successes, http.failures),
            (10, 1, 1, 3)
        );
        assert_eq!(read(json!({"tcpSocket": {"port": 1}, "failureThreshold": 7})).unwrap().failures, 7);
        assert_eq!(read(json!({"tcpSocket": {"port": "no"}})).unwrap_err(), PortError("no".into()));
        let exec = read(json!({"exec": {"command": ["x"]}, "timeoutSeconds": 4})).unwrap();
        assert_eq!((exec.target, exec.timeout.as_secs()), (Target::Exec { command: vec!["x".into()] }, 4));
        let grpc = read(json!({"grpc": {"port": 9, "service": "s"}})).unwrap();
        assert_eq!(grpc.target, Target::Grpc { port: 9, service: "s".into() });
    }

    #[test]
    fn verdicts_turn_at_their_thresholds() {
        let settings =
            read(json!({"tcpSocket": {"port": 1}, "failureThreshold": 3, "successThreshold": 2})).unwrap();
        let mut threshold = Threshold::new(&settings);
        let answers = [true, true, true, false, false, true, false, false, false, false, true, true];
        let verdicts: Vec<_> = answers.iter().map(|good| threshold.note(*good)).collect();
        let mut want = [None; 12];
        want[1] = Some(true);
        want[8] = Some(false);
        want[11] = Some(true);
        assert_eq!(verdicts, want);
    }

    #[tokio::test]
    async fn a_server_that_comes_a_moment_later_is_found_at_once() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let settings = read(json!({"tcpSocket": {"port": free.port()}, "periodSeconds": 60})).unwrap();
        let (tx, mut rx) = tokio::sync::mpsc::channel(1);
        let task = tokio::spawn(run(
            settings,
            Purpose::Readiness,
            crate::pod::asked_at(free.ip()),
            move |good| {
                let tx = tx.clone();
                async move { tx.send(good).await.unwrap() }
            },
            |_: &str| {},
        ));
        tokio::time::sleep(Duration::from_millis(30)).await;
        let _listener = tokio::net::TcpListener::bind(free).await.unwrap();
        let verdict = tokio::time::timeout(Duration::from_secs(5), rx.recv()).await.unwrap();
        assert_eq!(verdict, Some(true));
        task.abort();
    }
}
