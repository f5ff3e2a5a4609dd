//! Parameters that connection strings have for the sake of other clients.

/// What other clients read from the same string, and whose it is. None says where to connect or how
/// safely: it can be ignored.
///
/// The list is closed. A name that is close to one of these is probably a mistake in another one.
const EXTRAS: &[(&str, &str)] = &[
    // Prisma
    ("connection_limit", "Prisma"),
    ("max_connection_lifetime", "Prisma"),
    ("max_idle_connection_lifetime", "Prisma"),
    ("pgbouncer", "Prisma"),
    ("pool_timeout", "Prisma"),
    ("schema", "Prisma"),
    ("single_use_connections", "Prisma"),
    ("socket_timeout", "Prisma"),
    ("statement_cache_size", "Prisma and asyncpg"),
    // Vercel's marks in the strings that it gives out
    ("supa", "Vercel"),
    ("workaround", "Vercel"),
    // node-postgres; what it asks for is how sslmode works here anyway
    ("uselibpqcompat", "node-postgres"),
    // JDBC
    ("ApplicationName", "JDBC"),
    ("binaryTransfer", "JDBC"),
    ("currentSchema", "JDBC"),
    ("defaultRowFetchSize", "JDBC"),
    ("preferQueryMode", "JDBC"),
    ("prepareThreshold", "JDBC"),
    ("preparedStatementCacheQueries", "JDBC"),
    ("preparedStatementCacheSizeMiB", "JDBC"),
    ("reWriteBatchedInserts", "JDBC"),
    ("socketTimeout", "JDBC"),
    ("stringtype", "JDBC"),
    ("tcpKeepAlive", "JDBC"),
    // Rails
    ("advisory_locks", "Rails"),
    ("checkout_timeout", "Rails"),
    ("idle_timeout", "Rails"),
    ("min_messages", "Rails"),
    ("pool", "Rails"),
    ("prepared_statements", "Rails"),
    ("reaping_frequency", "Rails"),
    ("schema_search_path", "Rails"),
    ("statement_limit", "Rails"),
    // Doctrine, in the URLs that Symfony writes; the session talks UTF-8, whatever charset says
    ("charset", "Doctrine"),
    ("serverVersion", "Doctrine"),
    // SQLAlchemy
    ("prepared_statement_cache_size", "SQLAlchemy"),
    // sqlx
    ("statement-cache-capacity", "sqlx"),
    // pgx and lib/pq
    ("binary_parameters", "lib/pq"),
    ("default_query_exec_mode", "pgx"),
    ("description_cache_capacity", "pgx"),
    ("pool_health_check_period", "pgx"),
    ("pool_max_conn_idle_time", "pgx"),
    ("pool_max_conn_lifetime", "pgx"),
    ("pool_max_conn_lifetime_jitter", "pgx"),
    ("pool_max_conns", "pgx"),
    ("pool_min_conns", "pgx"),
    ("statement_cache_capacity", "pgx"),
];

/// Whose parameter it is, if it is one that can be ignored.
pub(super) fn owner(name: &str) -> Option<&'static str> {
    EXTRAS.iter().find(|(extra, _)| *extra == name).map(|&(_, owner)| owner)
}
