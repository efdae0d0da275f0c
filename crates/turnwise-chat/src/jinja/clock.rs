//! A fixed moment, formatted as by Python's `strftime`.

/// A moment without a time zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Clock {
    year: i64,
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

const DAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

impl Clock {
    /// Reads `2026-01-31`, `2026-01-31 14:30` or `2026-01-31T14:30:59`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is not a time; write it as 2026-01-31 or 2026-01-31T14:30:00");
        let (date, time) = text.split_once(['T', ' ']).unwrap_or((text, "00:00:00"));
        let numbers = |text: &str, by: char, lengths: &[usize]| -> Option<Vec<i64>> {
            let parts: Vec<&str> = text.split(by).collect();
            let fits = |(index, part): (usize, &&str)| {
                lengths.get(index) == Some(&part.len()) && part.bytes().all(|c| c.is_ascii_digit())
            };
            let all_fit = parts.iter().enumerate().all(fits);
            all_fit.then(|| parts.iter().filter_map(|part| part.parse().ok()).collect())
        };
        let date = numbers(date, '-', &[4, 2, 2]).ok_or_else(wrong)?;
        let time = numbers(time, ':', &[2, 2, 2]).ok_or_else(wrong)?;
        let (&[year, month, day], [hour, minute, ..]) = (&date[..], &time[..]) else {
            return Err(wrong());
        };
        let second = time.get(2).copied().unwrap_or(0);
        let clock = Self { year, month, day, hour: *hour, minute: *minute, second };
        let is_real = year >= 1
            && (1..=12).contains(&month)
            && (1..=clock.days_in_month()).contains(&day)
            && *hour < 24
            && *minute < 60
            && second < 60;
        if is_real { Ok(clock) } else { Err(wrong()) }
    }

    /// Formats the moment as `strftime` does, in English.
    pub(super) fn format(&self, format: &str) -> String {
        let mut written = String::with_capacity(format.len());
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                written.push(c);
                continue;
            }
            match chars.next() {
                Some('-') => match chars.next() {
                    Some(directive) => {
                        let field = self.field(directive);
                        let bare = field.trim_start_matches(['0', ' ']);
                        written.push_str(if bare.is_empty() { "0" } else { bare });
                    }
                    None => written.push_str("%-"),
                },
                Some(directive) => written.push_str(&self.field(directive)),
                None => written.push('%'),
            }
        }
        written
    }

    fn field(&self, directive: char) -> String {
        let Self { year, month, day, hour, minute, second } = self;
        let weekday = self.weekday();
        let index = |n: i64| usize::try_from(n).unwrap_or_default();
        let (day_name, month_name) = (DAYS[index(weekday)], MONTHS[index(month - 1)]);
        let (hour12, half) = ((hour + 11) % 12 + 1, if *hour < 12 { "AM" } else { "PM" });
        match directive {
            'Y' => format!("{year:04}"),
            'y' => format!("{:02}", year % 100),
            'C' => format!("{:02}", year / 100),
            'm' => format!("{month:02}"),
            'd' => format!("{day:02}"),
            'e' => format!("{day:2}"),
            'H' => format!("{hour:02}"),
            'k' => format!("{hour:2}"),
            'I' => format!("{hour12:02}"),
            'l' => format!("{hour12:2}"),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            'f' => "000000".to_owned(),
            'p' => half.to_owned(),
            'P' => half.to_lowercase(),
            'A' => day_name.to_owned(),
            'a' => day_name[..3].to_owned(),
            'B' => month_name.to_owned(),
            'b' | 'h' => month_name[..3].to_owned(),
            'j' => format!("{:03}", self.day_of_year()),
            'w' => ((weekday + 1) % 7).to_string(),
            'u' => (weekday + 1).to_string(),
            'U' => format!("{:02}", (self.day_of_year() + 6 - (weekday + 1) % 7) / 7),
            'W' => format!("{:02}", (self.day_of_year() + 6 - weekday) / 7),
            'F' => self.format("%Y-%m-%d"),
            'T' | 'X' => self.format("%H:%M:%S"),
            'R' => self.format("%H:%M"),
            'D' | 'x' => self.format("%m/%d/%y"),
            'r' => self.format("%I:%M:%S %p"),
            'c' => self.format("%a %b %e %H:%M:%S %Y"),
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            // The time zone is empty.
            'z' | 'Z' => String::new(),
            '%' => "%".to_owned(),
            other => format!("%{other}"),
        }
    }

    fn is_leap_year(&self) -> bool {
        self.year % 4 == 0 && (self.year % 100 != 0 || self.year % 400 == 0)
    }

    fn days_in_month(&self) -> i64 {
        match self.month {
            2 => 28 + i64::from(self.is_leap_year()),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        }
    }

    fn day_of_year(&self) -> i64 {
        let before = (1..self.month).map(|month| Self { month, ..self.clone() }.days_in_month());
        before.sum::<i64>() + self.day
    }

    /// Returns the days since Monday.
    fn weekday(&self) -> i64 {
        let before = self.year - 1;
        let days = before * 365 + before / 4 - before / 100 + before / 400 + self.day_of_year();
        (days - 1).rem_euclid(7)
    }
}

#[cfg(test)]
mod tests {
    use super::Clock;

    // Python: datetime(2024, 7, 26, 9, 5, 7).strftime(format), and likewise.
    #[test]
    fn formats_are_pythons() {
        let cases = [
            ("2024-07-26T09:05:07", "%d %b %Y", "26 Jul 2024"),
            ("2024-07-26T09:05:07", "%A, %B %-d; %j %U %W %w %u", "Friday, July 26; 208 29 30 5 5"),
            ("2024-07-26T09:05:07", "%H:%M:%S %I %p %y %%", "09:05:07 09 AM 24 %"),
            ("2024-02-29", "%Y-%m-%d %a %e %-H", "2024-02-29 Thu 29 0"),
            ("2000-01-01 00:30", "%F %R %I %p %a %U %W", "2000-01-01 00:30 12 AM Sat 00 00"),
            ("2023-12-31 23:59", "%c|%x|%X|%j", "Sun Dec 31 23:59:00 2023|12/31/23|23:59:00|365"),
        ];
        for (time, format, expected) in cases {
            assert_eq!(
                Clock::parse(time).expect("a time").format(format),
                expected,
                "{time} {format}"
            );
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "today",
            "2024-13-01",
            "2023-02-29",
            "2024-1-1",
            "2024-01-01T25:00",
            "2024-01-01T10",
            "2024-01-01-01",
        ] {
            assert!(Clock::parse(text).is_err(), "{text}");
        }
    }
}
