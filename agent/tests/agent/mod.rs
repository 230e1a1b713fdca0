//! One module for each side of the agent, and `world`, which they all stand on.

mod back_ends;
mod bgp;
mod bundle;
mod cleanup;
mod cni;
mod doctor;
mod drain;
mod drift;
mod egress;
mod foreign;
mod gateway;
mod jumps;
mod life;
mod link;
mod logless;
mod monitoring;
mod orders;
mod parts;
mod services;
mod source;
mod start;
mod views;
mod watch;
mod why;
mod world;
