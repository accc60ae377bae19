/*
 * grown.pml
 *	  Pages written past the buffer pool, in a file of up to three pages.
 *
 * The model is unbuffered.pml.  What a file has grown by needs no durable mark
 * when it is overwritten, because whatever comes after it has come since, too.
 * For a page before that it is not so: the walk from the end may meet an old
 * page first.  It takes three pages to tell: one that is overwritten, an old
 * one, and one that the file has grown by.
 */
#define PAGES 3

#ifndef CHECKPOINTS
#define CHECKPOINTS 1
#endif

/* RULE GROWN_FROM needs_durable_mark (hooks.c): what is overwritten is not compared with grown_from */
#ifdef NO_GROWN_FROM
#define BEYOND_GROWN_FROM	true
#endif

#include "unbuffered.pml"
