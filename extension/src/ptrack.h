/*-------------------------------------------------------------------------
 *
 * ptrack.h
 *	  What the module's entry points share.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PTRACK_H
#define PTRACK_H

extern bool ptrack_enabled(void);

#endif							/* PTRACK_H */
