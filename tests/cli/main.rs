//! The command `pglock`, as scripts and people meet it.
