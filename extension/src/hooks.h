/*-------------------------------------------------------------------------
 *
 * hooks.h
 *	  Where marks come from: the core's hooks.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PTRACK_HOOKS_H
#define PTRACK_HOOKS_H

extern void ptrack_check_core(void);
extern void ptrack_install_hooks(void);

#endif							/* PTRACK_HOOKS_H */
