/* status.h — the one error type: a code that travels up, a message logged once where the cause is first known.
 *
 * The function that first knows what went wrong calls FAIL with the values that matter; everyone above passes the
 * code on with TRY / TRY_OUT. Outputs are set only on success. Only a command decides the exit status. */
#ifndef QSWEEP_BASE_STATUS_H
#define QSWEEP_BASE_STATUS_H

typedef enum {
    ST_OK = 0,
    ST_EUSAGE,       /* the command line is wrong: exit 2                                  */
    ST_EINPUT,       /* bytes from outside are wrong: checkpoint, job file, codes          */
    ST_EIO,          /* the operating system refused: open, write, no space                */
    ST_ENOMEM,       /* host memory                                                        */
    ST_EOOM,         /* device memory, or the cell's memory limit: a measurement, not a bug */
    ST_EDEVICE,      /* a device, its driver or its libraries                              */
    ST_EUNSUPPORTED, /* legal, but not built in or not possible here                       */
    ST_EINTERRUPTED, /* a signal or a deadline asked us to stop                            */
    ST_EINTERNAL,    /* our own bug                                                        */
    ST_COUNT
} status_t;

/* Log "who: file:line: message" once, where the failure is first known; return code. */
__attribute__((format(printf, 4, 5))) status_t status_raise(status_t code, const char *file, int line, const char *fmt,
                                                            ...);

/* Short lower-case name of a code ("bad input"), for messages and files. */
const char *status_name(status_t code);

/* The exit status a command returns for a code: 0, 2 for ST_EUSAGE, 1 otherwise. */
int status_exit(status_t code);

/* Text of the last failure raised on this thread ("" if none); valid until the next FAIL here. */
const char *status_last(void);

/* Make message the last failure of this thread without logging it again: for a failure that a helper thread raised and
 * logged, in the thread that passes its code on. */
void status_adopt(const char *message);

#define FAIL(code, ...) status_raise((code), __FILE__, __LINE__, __VA_ARGS__)
#define TRY(expr)                \
    do {                         \
        status_t st_ = (expr);   \
        if (st_ != ST_OK)        \
            return st_;          \
    } while (0)
#define TRY_OUT(expr)      \
    do {                   \
        st = (expr);       \
        if (st != ST_OK)   \
            goto out;      \
    } while (0)

#endif
