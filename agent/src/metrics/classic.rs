//! From OpenMetrics to the older text format, for scrapers and tools that know no other: there a counter's family is named
//! as its samples are, with `_total`, and nothing marks the end.

/// The same metrics; the input is our own encoder's.
pub(super) fn from_openmetrics(text: &str) -> String {
    let counters: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let mut out = String::with_capacity(text.len());
    for line in text.lines().filter(|line| *line != "# EOF" && !line.starts_with("# UNIT ")) {
        match about(line).filter(|(_, name, _)| counters.contains(name)) {
            Some((keyword, name, rest)) => out += &format!("# {keyword} {name}_total {rest}\n"),
            None => {
                out += line;
                out.push('\n');
            }
        }
    }
    out
}

/// Keyword, name and the rest of `# HELP name ...` and `# TYPE name ...`.
fn about(line: &str) -> Option<(&str, &str, &str)> {
    let mut words = line.strip_prefix("# ")?.splitn(3, ' ');
    Some((words.next()?, words.next()?, words.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_get_the_name_of_their_samples_and_gauges_keep_theirs() {
        let text = "# HELP manx_up Up.\n# TYPE manx_up gauge\nmanx_up{peer=\"# TYPE x counter\"} 1\n\
                    # HELP manx_messages Messages.\n# TYPE manx_messages counter\n# UNIT manx_messages bytes\n\
                    manx_messages_total{peer=\"a\"} 7\n# EOF\n";
        let expected = "# HELP manx_up Up.\n# TYPE manx_up gauge\nmanx_up{peer=\"# TYPE x counter\"} 1\n\
                        # HELP manx_messages_total Messages.\n# TYPE manx_messages_total counter\n\
                        manx_messages_total{peer=\"a\"} 7\n";
        assert_eq!(from_openmetrics(text), expected);
    }
}
