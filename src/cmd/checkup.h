/* checkup.h — what `qsweep doctor` looks at: a list of findings, each with what was seen and the command that helps. */
#ifndef QSWEEP_CMD_CHECKUP_H
#define QSWEEP_CMD_CHECKUP_H

#include "base/status.h"

#include <stdbool.h>

enum verdict_word {
    FOUND_OK,     /* fine                                                        */
    FOUND_WARN,   /* works, but slower, riskier or with a part of it missing     */
    FOUND_FAIL,   /* something that this machine needs for the wish does not work */
    FOUND_ABSENT, /* not here, and not needed                                    */
    FOUND_COUNT
};

const char *found_name(enum verdict_word w); /* "ok", "warn", "fail", "absent" */

struct finding {
    const char       *name; /* "nvidia-driver"; static text                        */
    enum verdict_word word;
    char              seen[400];
    char              remedy[400]; /* a command or one sentence; "" where nothing is to be done */
};

enum { FINDINGS_MAX = 192 };

struct checkup {
    int            n;
    struct finding all[FINDINGS_MAX];
};

/* What the user wants to do here. */
struct wish {
    bool        gpu;         /* --device cuda: a GPU is needed                                             */
    bool        ranks;       /* --ranks: Open MPI is needed                                                */
    const char *output;      /* folder of results, existing or not                                         */
    const char *model;       /* checkpoint folder, or NULL                                                 */
    long long   model_bytes; /* sum of its weight files, 0 when unknown: set by checkup_model             */
};

/* Append a finding whose text is formatted into `seen`; returns it so that the caller can set the remedy. A full list
 * keeps its last entry and overwrites it. */
__attribute__((format(printf, 4, 5))) struct finding *checkup_add(struct checkup *c, const char *name,
                                                                  enum verdict_word word, const char *fmt, ...);
__attribute__((format(printf, 2, 3))) void            finding_remedy(struct finding *f, const char *fmt, ...);

/* Each looks at one field and appends its findings; nothing is changed on the machine but a probe file that
 * checkup_storage writes and removes below wish->output or its nearest existing parent. */
void checkup_model(struct checkup *c, struct wish *wish); /* first: sets model_bytes */
void checkup_cpu(struct checkup *c);
void checkup_gpu(struct checkup *c, const struct wish *wish);
void checkup_storage(struct checkup *c, const struct wish *wish);
void checkup_software(struct checkup *c, const struct wish *wish);

/* Path of an executable on PATH into out; false where there is none. */
bool checkup_which(const char *program, char *out, int size);

/* Folder of the running program without a final '/'; "." when unknown. */
void checkup_own_folder(char *out, int size);

/* First line that a shell command prints (at most size − 1 bytes); returns its exit status, −1 where it could not run.
 */
int checkup_command(const char *command, char *out, int size);

#endif
