/* companions.h — the files that lie beside the weights of a checkpoint (tokenizer, codec.pth, licence, …) and travel with
 * a copy of it. Left out: model.pth, model*.safetensors*, config.json and the cached fingerprint (a copy gets its own),
 * and the folders .cache, .git, __pycache__. Symbolic links to files are followed, those to folders are not. */
#ifndef QSWEEP_CHECKPOINT_COMPANIONS_H
#define QSWEEP_CHECKPOINT_COMPANIONS_H

#include "base/status.h"

#include <signal.h>
#include <stddef.h>

/* Bytes of all of them. */
status_t companions_size(const char *dir, size_t *bytes);

/* Copy them from dir into the existing folder `to`, each flushed to disk. stop non-zero: ST_EINTERRUPTED; NULL: never. */
status_t companions_copy(const char *dir, const char *to, const volatile sig_atomic_t *stop);

/* Symbolic links to them instead of copies, in the existing folder `to`: files and folders of dir itself, by absolute
 * path. */
status_t companions_link(const char *dir, const char *to);

/* Remove a folder and all in it; errors are passed over, because there is nothing left to do about them. */
void companions_remove(const char *dir);

#endif
