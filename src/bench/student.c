#include "bench/student.h"

#include <math.h>

/* Continued fraction of the incomplete beta function, modified Lentz (Press et al., Numerical Recipes, describe the
 * recurrence; DLMF 8.17.22 has the coefficients). Converges in O(√max(a, b)) terms for x < (a + 1)/(a + b + 2). */
static double beta_fraction(double x, double a, double b)
{
    enum { TERMS_MAX = 100000 };
    const double tiny = 1e-300;
    double       c = 1, d = 1 - (a + b) * x / (a + 1);
    d = 1 / (fabs(d) < tiny ? tiny : d);
    double value = d;
    for (int m = 1; m < TERMS_MAX; m++) {
        double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
        double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
        double before = value;
        for (int k = 0; k < 2; k++) {
            double term = k ? odd : even;
            d = 1 + term * d;
            c = 1 + term / c;
            d = 1 / (fabs(d) < tiny ? tiny : d);
            c = fabs(c) < tiny ? tiny : c;
            value *= d * c;
        }
        if (fabs(value - before) <= 1e-15 * fabs(value))
            break;
    }
    return value;
}

/* The regularised incomplete beta function I(x; a, b); y = 1 − x is handed in, where it is known exactly. */
static double beta_regularised(double x, double y, double a, double b)
{
    if (x <= 0 || y <= 0)
        return x <= 0 ? 0 : 1;
    double front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log(y));
    return x < (a + 1) / (a + b + 2) ? front * beta_fraction(x, a, b) / a : 1 - front * beta_fraction(y, b, a) / b;
}

double student_tails(double t, double df)
{
    if (isnan(t) || !(df > 0))
        return NAN;
    if (isinf(t))
        return 0;
    double t2 = t * t;
    return beta_regularised(df / (df + t2), t2 / (df + t2), df / 2, 0.5);
}

double student_quantile(double tails, double df)
{
    if (!(tails >= 0 && tails <= 1) || !(df > 0))
        return NAN;
    if (tails == 0)
        return INFINITY;
    double low = 0, high = 1;
    while (student_tails(high, df) > tails && high < 1e300)
        high *= 2;
    for (int i = 0; i < 200 && high - low > 1e-14 * high; i++) {
        double middle = low + 0.5 * (high - low);
        if (student_tails(middle, df) > tails)
            low = middle;
        else
            high = middle;
    }
    return low + 0.5 * (high - low);
}
