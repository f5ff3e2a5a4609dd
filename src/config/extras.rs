//! Parameters that connection strings have for the sake of other clients.

/// What other clients read from the same string, and whose it is. None says where to connect or how
/// safely: it can be ignored.
///
/// First whose they are, then their names. The list is closed: a name that is close to one of these is
/// probably a mistake in another one.
const EXTRAS: &[(&str, &str)] = &[
    (
        "Prisma",
        "connection_limit max_connection_lifetime max_idle_connection_lifetime pgbouncer \
         pool_timeout schema single_use_connections socket_timeout",
    ),
    ("Prisma and asyncpg", "statement_cache_size"),
    // Marks in the strings that it gives out.
    ("Vercel", "supa workaround"),
    // What it asks for is how sslmode works here anyway.
    ("node-postgres", "uselibpqcompat"),
    (
        "JDBC",
        "ApplicationName binaryTransfer currentSchema defaultRowFetchSize preferQueryMode \
         prepareThreshold preparedStatementCacheQueries preparedStatementCacheSizeMiB \
         reWriteBatchedInserts socketTimeout stringtype tcpKeepAlive",
    ),
    (
        "Rails",
        "advisory_locks checkout_timeout idle_timeout min_messages pool prepared_statements \
         reaping_frequency schema_search_path statement_limit",
    ),
    // In the URLs that Symfony writes. The session talks UTF-8, whatever charset says.
    ("Doctrine", "charset serverVersion"),
    ("SQLAlchemy", "prepared_statement_cache_size"),
    ("sqlx", "statement-cache-capacity"),
    ("lib/pq", "binary_parameters"),
    (
        "pgx",
        "default_query_exec_mode description_cache_capacity pool_health_check_period \
         pool_max_conn_idle_time pool_max_conn_lifetime pool_max_conn_lifetime_jitter \
         pool_max_conns pool_min_conns statement_cache_capacity",
    ),
];

/// Whose parameter it is, if it is one that can be ignored.
pub(super) fn owner(name: &str) -> Option<&'static str> {
    let is_theirs = |names: &str| names.split(' ').any(|theirs| theirs == name);
    EXTRAS.iter().find(|(_, names)| is_theirs(names)).map(|&(owner, _)| owner)
}
