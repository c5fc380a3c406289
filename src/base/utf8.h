/* utf8.h — Unicode text from outside: is it UTF-8 at all, and where not. */
#ifndef QSWEEP_BASE_UTF8_H
#define QSWEEP_BASE_UTF8_H

#include <stddef.h>

/* Bytes of the well-formed sequence at text [size], 1..4, or 0: overlong forms, surrogates, values above U+10FFFF and cut
 * sequences are not UTF-8 (Unicode 15, table 3-7). */
size_t utf8_length(const char *text, size_t size);

/* Offset of the first byte that is not UTF-8; size if all is well. */
size_t utf8_first_bad(const char *text, size_t size);

#endif
