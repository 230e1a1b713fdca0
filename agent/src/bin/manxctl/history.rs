//! What became of a peer, and of an order about one.

use manx_agent::view::{Action, PeerAction, PeerHistory};

use crate::output::{Show, Style};
use crate::show::{age, left, number, printable, right, table, text};

impl Show for PeerHistory {
    fn text(&self, style: &Style) -> String {
        let address = self.address.as_ref().map_or(String::new(), |a| format!(" ({a})"));
        let now = match &self.state {
            Some(state) => format!("{state} for {}", age(self.since, style.now)),
            None => "not configured any more".to_owned(),
        };
        let title = printable(&format!("{}{address}: {now}, {} flaps", self.name, self.flaps));
        if self.items.is_empty() {
            return format!("{title}\nnothing has happened yet\n");
        }
        let mut columns = vec![left("AGO"), left("FROM"), left("TO"), right("TIMES")];
        if style.wide {
            columns.extend([left("AT"), left("FIRST"), left("CAUSE"), left("NOTIFICATION")]);
        }
        columns.push(left("REASON"));
        let rows = self.items.iter().map(|t| {
            let mut row = vec![
                text(&age(Some(t.at), style.now)),
                text(&t.from),
                text(&t.to),
                number(Some(t.count).filter(|n| *n > 1)),
            ];
            if style.wide {
                let word = t.notification.as_ref();
                row.extend([
                    text(&utc(t.at)),
                    text(&utc(t.first_at)),
                    text(t.cause.as_deref().unwrap_or("-")),
                    text(
                        &word.map_or("-".to_owned(), |n| format!("{} {}/{}", n.direction, n.code, n.subcode)),
                    ),
                ]);
            }
            row.push(text(t.reason.as_deref().unwrap_or("-")));
            row
        });
        format!("{title}\n{}", table(&columns, rows, style))
    }

    fn names(&self) -> Vec<String> {
        vec![self.address.clone().unwrap_or_else(|| self.name.clone())]
    }
}

impl Show for PeerAction {
    fn text(&self, _: &Style) -> String {
        let done = match self.action {
            Action::Reset => "session reset (Cease/Administrative Reset)",
            Action::SoftReset => "its routes are asked for again, and ours sent again",
            Action::SoftResetIn => "its routes are asked for again",
            Action::SoftResetOut => "our routes are sent again",
            Action::Disable => "disabled (Cease/Administrative Shutdown), until `peer enable`",
            Action::Enable => "enabled",
        };
        let reason = self.reason.as_ref().map_or(String::new(), |r| format!(", {r}"));
        printable(&format!("{} ({}): {done}; now {}{reason}", self.name, self.address, self.state))
    }

    fn names(&self) -> Vec<String> {
        vec![self.address.clone()]
    }
}

/// `2027-01-15 08:00:00Z`.
pub(crate) fn utc(epoch: u64) -> String {
    let (days, second) = (epoch / 86_400, epoch % 86_400);
    // Days since 0000-03-01: in years that begin in March a leap day is the last one.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute) = (second / 3600, second % 3600 / 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02}Z", second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01 00:00:00Z");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00:00Z");
        assert_eq!(utc(1_709_251_199), "2024-02-29 23:59:59Z");
        assert_eq!(utc(1_735_689_599), "2024-12-31 23:59:59Z");
        assert_eq!(utc(4_107_542_400), "2100-03-01 00:00:00Z");
    }
}
