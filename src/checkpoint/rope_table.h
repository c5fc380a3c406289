/* rope_table.h — rotary tables in BF16 made with integers only, so that their bytes are the same on every machine. */
#ifndef QSWEEP_CHECKPOINT_ROPE_TABLE_H
#define QSWEEP_CHECKPOINT_ROPE_TABLE_H

#include <stdint.h>

/* out [positions, pairs, 2]: cos and sin of position · 10000^(−i/pairs), BF16 in the byte order of files. pairs is a power
 * of two up to 64. The angle errs by less than 2^−28; the original takes it in FP32, so a few of its entries differ by one
 * unit in the last place. */
void rope_table_fill(int64_t positions, int pairs, void *out);

#endif
