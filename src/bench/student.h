/* student.h — Student's t distribution with any real number of degrees of freedom > 0. */
#ifndef QSWEEP_BENCH_STUDENT_H
#define QSWEEP_BENCH_STUDENT_H

/* P(|T| ≥ |t|): the two-sided p-value; 1 for t = 0, NaN for a NaN or df ≤ 0. Through the incomplete beta function
 * I(df/(df + t²); df/2, 1/2) by its continued fraction (DLMF 8.17.22), to about 1e-12. */
double student_tails(double t, double df);

/* The t ≥ 0 that |T| exceeds with probability `tails` (0.05: the half-width of a 95 % interval in standard errors).
 * Infinite for tails = 0, NaN outside [0, 1] or for df ≤ 0. */
double student_quantile(double tails, double df);

#endif
