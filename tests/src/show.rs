//! What the lab prints for a person: sessions, route tables, who reaches whom.

use std::time::Duration;

use anyhow::Result;
use comfy_table::{Table, presets};

use crate::lab::Lab;
use crate::probe::matrix::{self, Outcomes, Question};

/// Prints the sessions of every node and router, the routes of one node and of one ToR.
///
/// # Errors
/// When somebody does not answer.
pub fn tables(lab: &Lab) -> Result<()> {
    println!("\n== BGP sessions as the nodes see them (manxctl peers)");
    for (node, agent) in &lab.agents {
        println!("{node}:");
        print_indented(&agent.manxctl(&["peers"])?);
    }
    println!("\n== BGP sessions as the routers see them");
    for (machine, router) in &lab.routers {
        println!("{machine} ({}):", router.version()?);
        print_indented(&router.summary()?);
    }
    println!("\n== Routes in the kernel of node-2 (ip route)");
    let netns = lab.netns("node-2");
    print_indented(&netns.ip("-4 route show")?);
    print_indented(&netns.ip("-6 route show")?);
    println!("\n== BGP routes of tor-a (birdc show route)");
    print_indented(&lab.routers["tor-a"].table()?);
    Ok(())
}

/// Asks every pair of pods, and the host outside, and prints who reaches whom.
///
/// # Errors
/// When a namespace cannot be entered.
pub fn reachability(lab: &Lab, limit: Duration) -> Result<Outcomes> {
    let mut parties = lab.parties();
    parties.push(lab.outside());
    let questions = Question::usual();
    let outcomes = matrix::ask(&parties, &questions, limit, |_, _| true)?;

    println!(
        "\n== Who reaches whom (row: sender; t, u, p: TCP, UDP, ping over IPv4; T, U, P: over IPv6; a dot: no answer)"
    );
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let mut header = vec![String::new()];
    header.extend(parties.iter().map(|p| p.name.clone()));
    table.set_header(header);
    for from in &parties {
        let mut row = vec![from.name.clone()];
        for to in &parties {
            row.push(if from.name == to.name {
                "-".to_owned()
            } else {
                questions
                    .iter()
                    .zip("tupTUP".chars())
                    .map(|(question, letter)| {
                        let outcome = &outcomes[&(from.name.clone(), to.name.clone(), *question)];
                        if outcome.is_answered() { letter } else { '.' }
                    })
                    .collect()
            });
        }
        table.add_row(row);
    }
    print_indented(&table.to_string());
    Ok(outcomes)
}

fn print_indented(text: &str) {
    for line in text.lines() {
        println!("  {}", line.trim_end());
    }
}
