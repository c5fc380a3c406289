#include "base/utf8.h"

#include <stdint.h>

size_t utf8_length(const char *text, size_t size)
{
    const uint8_t *s = (const uint8_t *)text;
    if (size == 0)
        return 0;
    if (s[0] < 0x80)
        return 1;
    size_t n = s[0] >= 0xc2 && s[0] <= 0xdf ? 2 : (s[0] & 0xf0) == 0xe0 ? 3 : s[0] >= 0xf0 && s[0] <= 0xf4 ? 4 : 0;
    if (n == 0 || n > size)
        return 0;
    /* Only the second byte has a range that depends on the first: there sit overlong forms, surrogates and the end. */
    uint8_t low  = s[0] == 0xe0 ? 0xa0 : s[0] == 0xf0 ? 0x90 : 0x80;
    uint8_t high = s[0] == 0xed ? 0x9f : s[0] == 0xf4 ? 0x8f : 0xbf;
    if (s[1] < low || s[1] > high)
        return 0;
    for (size_t i = 2; i < n; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    return n;
}

size_t utf8_first_bad(const char *text, size_t size)
{
    size_t at = 0;
    while (at < size) {
        size_t n = utf8_length(text + at, size - at);
        if (n == 0)
            break;
        at += n;
    }
    return at;
}
