//! Calendar features of a time, each within -0.5 and 0.5, as GluonTS and the published forecasters have them for hourly
//! data: hour of the day, day of the week, of the month, of the year.

use crate::table::{Frequency, local};
use chrono::{Datelike, Timelike};

/// Number of features.
pub const N_MARKS: usize = 4;

/// Features of a time, or zeros where times are mere steps.
pub fn marks(time: i64, frequency: Frequency, zone: Option<chrono_tz::Tz>) -> [f32; N_MARKS] {
    if matches!(frequency, Frequency::Steps(_)) {
        return [0.0; N_MARKS];
    }
    let at = local(time, zone);
    let hour = at.hour() as f32 / 23.0;
    let weekday = at.weekday().num_days_from_monday() as f32 / 6.0;
    let day = (at.day() - 1) as f32 / 30.0;
    let of_year = at.ordinal0() as f32 / 365.0;
    [hour - 0.5, weekday - 0.5, day - 0.5, of_year - 0.5]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_run_from_minus_to_plus_a_half() {
        let hourly = Frequency::Milliseconds(3_600_000);
        // Friday 2016-07-01 00:00, the first row of ETTh1
        assert_eq!(
            marks(1_467_331_200_000, hourly, None),
            [-0.5, 4.0 / 6.0 - 0.5, -0.5, 182.0 / 365.0 - 0.5]
        );
        // Thursday 2020-12-31 23:00
        let last = marks(1_609_455_600_000, hourly, None);
        assert_eq!(last, [0.5, 0.0, 0.5, 0.5]);
        let berlin = Some("Europe/Berlin".parse().unwrap());
        assert_eq!(marks(1_609_455_600_000, hourly, berlin)[0], -0.5, "midnight in Berlin");
        assert_eq!(marks(7, Frequency::Steps(1), None), [0.0; 4]);
    }
}
