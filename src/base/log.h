/* log.h — lines for people on stderr. Tables and data go to stdout and never through here. */
#ifndef QSWEEP_BASE_LOG_H
#define QSWEEP_BASE_LOG_H

enum log_level { LOG_NONE = -1, LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

/* Label set once at start ("rank 3 node07 cuda:1"); it stands before every line. Copied; NULL clears it. */
void log_set_who(const char *who);

/* Lines above this level are dropped; the default is LOG_INFO, QSWEEP_LOG=debug|info|warn|error|none overrides. */
void           log_set_level(enum log_level level);
enum log_level log_get_level(void);

__attribute__((format(printf, 2, 3))) void log_line(enum log_level level, const char *fmt, ...);

#define log_info(...) log_line(LOG_INFO, __VA_ARGS__)
#define log_warn(...) log_line(LOG_WARN, __VA_ARGS__)
#define log_debug(...) log_line(LOG_DEBUG, __VA_ARGS__)

#endif
