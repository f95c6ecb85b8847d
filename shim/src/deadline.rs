//! The deadlines that clients set on their calls (gRPC's `grpc-timeout`).
//!
//! tonic keeps them too, and answers CANCELLED where gRPC has DEADLINE_EXCEEDED; so a call is ended here, a moment earlier.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use tonic::Status;
use tower_service::Service;

/// Before tonic's own clock rings, which has steps of a millisecond.
const EARLIER: Duration = Duration::from_millis(2);

/// The service within, with deadlines.
#[derive(Clone)]
pub struct Deadlines<S>(pub S);

impl<S, B, R> Service<Request<B>> for Deadlines<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let header = request.headers().get("grpc-timeout").and_then(|value| value.to_str().ok());
        let limit = header.and_then(parse).map(|limit| limit.saturating_sub(EARLIER));
        let answer = self.0.call(request);
        Box::pin(async move {
            let Some(limit) = limit else { return answer.await };
            match tokio::time::timeout(limit, answer).await {
                Ok(answer) => answer,
                Err(_) => Ok(Status::deadline_exceeded("the call's deadline has passed").into_http()),
            }
        })
    }
}

/// At most 8 digits and a unit, as gRPC over HTTP/2 has it.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_that_is_not_done_in_time_is_answered_and_others_are_left_alone() {
        let answer = |wait: u64| async move {
            tokio::time::sleep(Duration::from_millis(wait)).await;
            Ok::<_, std::convert::Infallible>(Response::new(String::from("done")))
        };
        let ask = async |wait: u64, limit: &str| {
            let mut service = Deadlines(tower::service_fn(move |_: Request<()>| answer(wait)));
            let request = Request::builder().header("grpc-timeout", limit).body(()).unwrap();
            let answer = service.call(request).await.unwrap();
            let status = answer.headers().get("grpc-status").map(|code| code.to_str().unwrap().to_owned());
            (status, answer.into_body())
        };
        // A minute that nobody waits for.
        assert_eq!(ask(60_000, "20m").await, (Some("4".to_owned()), String::new()));
        assert_eq!(ask(0, "30S").await, (None, "done".to_owned()));
        assert_eq!(ask(0, "no deadline").await, (None, "done".to_owned()));
    }

    #[test]
    fn deadlines_are_read_in_every_unit() {
        for (text, nanos) in [
            ("2H", 7_200_000_000_000),
            ("3M", 180_000_000_000),
            ("1S", 1_000_000_000),
            ("5m", 5_000_000),
            ("7u", 7_000),
            ("9n", 9),
        ] {
            assert_eq!(parse(text), Some(Duration::from_nanos(nanos)), "{text}");
        }
        for text in ["", "S", "1", "1s", "123456789S", "-1S"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
