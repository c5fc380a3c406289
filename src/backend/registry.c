/* Which backends this program has. The only place that knows whether CUDA was built in. */
#include "backend/backend.h"
#include "backend/peer.h"

#include <stdlib.h>
#include <string.h>

extern const struct backend_ops cpu_ref_ops, cpu_ops;
#ifdef HAVE_CUDA
extern const struct backend_ops cuda_ops __attribute__((weak)); /* absent while the CUDA half is not linked */
extern const struct peer_ops    peer_nccl __attribute__((weak));
#endif

bool backend_has_cuda(void)
{
#ifdef HAVE_CUDA
    return &cuda_ops != NULL;
#else
    return false;
#endif
}

status_t backend_find(const char *name, const struct backend_ops **out)
{
    if (strcmp(name, "cpu") == 0 || strcmp(name, "cpu_ref") == 0) {
        *out = strcmp(name, "cpu") == 0 ? &cpu_ops : &cpu_ref_ops;
        return ST_OK;
    }
    if (strcmp(name, "cuda") == 0) {
#ifdef HAVE_CUDA
        if (&cuda_ops) {
            *out = &cuda_ops;
            return ST_OK;
        }
#endif
        return FAIL(ST_EUNSUPPORTED, "device \"cuda\": this qsweep was built without CUDA; use --device cpu");
    }
    return FAIL(ST_EUSAGE, "device \"%s\": want cpu, cpu_ref, cuda, cuda:INDEX or cuda:UUID", name);
}

status_t backend_open(const char *device, const struct backend_options *options, struct backend **out)
{
    struct backend_options      o     = *options;
    const struct backend_ops   *ops   = NULL;
    const char                 *colon = strchr(device, ':');
    if (colon) {
        char       *end;
        const char *which = colon + 1;
        long        index = strtol(which, &end, 10);
        bool        uuid  = strncmp(which, "GPU-", 4) == 0 || strncmp(which, "MIG-", 4) == 0;
        if (strncmp(device, "cuda:", 5) != 0 || (uuid && strlen(which) >= sizeof o.uuid) ||
            (!uuid && (*which < '0' || *which > '9' || *end || index > 1023)))
            return FAIL(ST_EUSAGE, "device \"%s\": want cpu, cpu_ref, cuda, cuda:INDEX or cuda:UUID", device);
        if (uuid)
            strcpy(o.uuid, which);
        else
            o.device = (int)index;
        device = "cuda";
    }
    TRY(backend_find(device, &ops));
    return ops->open(&o, out);
}

void backend_close(struct backend *be)
{
    if (be)
        backend_ops_of(be)->close(be);
}

const struct peer_ops *peer_ops(void)
{
#ifdef HAVE_CUDA
    if (&peer_nccl)
        return &peer_nccl;
#endif
    return NULL;
}
